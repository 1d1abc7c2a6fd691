"""What the methods are for and where they come from, in words."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.errors import RecipeError
from sftm_app.methods import METHODS
from sftm_app.methods.base import Method, refuse_task_count
from sftm_app.ui.widgets.html import Html, hint, notice, stack, strong, table


def fitting_methods(n_tasks: int) -> list[str]:
    """The names of the methods that merge this many tasks, in the table's order."""
    return [name for name, method in METHODS.items() if not unfit_sentence(method, n_tasks)]


def unfit_sentence(method: Method, n_tasks: int) -> str:
    """Why a method does not merge this many tasks; "" if it does."""
    try:
        refuse_task_count(method, n_tasks)
    except RecipeError as error:
        return str(error)
    return ""


def method_html(method: Method, n_tasks: int, instead: str = "") -> Html:
    """What a method is for, its source, and whether it fits the number of tasks.

    Args:
        method: the method.
        n_tasks: the number of tasks; 0 while none are loaded.
        instead: a sentence on what is shown while it does not fit.
    """
    problem = unfit_sentence(method, n_tasks) if n_tasks else ""
    warning = notice("warning", "Not for these tasks", f"{problem} {instead}") if problem else ""
    return stack(hint(method.summary), hint(f"Source: {method.reference}"), warning)


def methods_html(names: Sequence[str]) -> Html:
    """The same of several methods, as a table."""
    found = [METHODS[name] for name in names]
    return table(["method", "what it is for", "source"], [(strong(m.title), m.summary, m.reference) for m in found])
