"""Whether the run on show was made with the settings of the form, and if not, with which."""

from __future__ import annotations

from sftm_app.errors import SFTMError
from sftm_app.jobs.folder import open_run
from sftm_app.planning.recipe import Recipe
from sftm_app.ui.merging.comparison_view import FORM
from sftm_app.ui.merging.form import settings_of
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, join, notice
from sftm_app.ui.wording import settings_title


def makes_another_model(first: Recipe, second: Recipe) -> bool:
    """Whether two recipes make different models. Where they compute, and what they measure, does not count."""
    return _of_model(first) != _of_model(second)


def _of_model(recipe: Recipe) -> tuple[object, ...]:
    output = recipe.output
    tasks = [(task.path, task.weight) for task in recipe.tasks]
    made = recipe.base, tasks, recipe.method, recipe.params, recipe.roles, recipe.split_fused, recipe.tokenizer
    return *made, output.kind, output.dtype, output.rank, output.energy


def differs_html(studio: Studio, run_id: str, recipe: Recipe) -> Html:
    """A sentence if the run on show was made with other settings than those of the form; "" if not.

    Args:
        run_id: of the run; "" for none.
        recipe: of the form.
    """
    if not run_id:
        return Html("")
    try:
        made = studio.recipe(open_run(studio.settings.runs_dir, run_id))
    except SFTMError:  # which the run panel says
        return Html("")
    if not makes_another_model(made, recipe):
        return Html("")
    link = view_link("Use these settings", FORM, ("use-run",))
    body = join([f"The run below: {settings_title(settings_of(made))}. ", link])
    return notice("warning", "Made with other settings than those of the form", body)
