"""Words that several tabs share: a merge's settings in short, and how its errors are read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sftm_app.methods import METHODS
from sftm_app.methods.params import controls, values_to_name
from sftm_app.methods.settings import MergeSettings

# The method that predictions and results are compared with.
BASELINE = "average"
ERRORS_HELP = (
    "Readout error: how far the merge is from the gain of each of a task's features. Mapping error: the same for whole "
    "outputs, including what other tasks write there. 0 keeps everything; 1 is as far off as adding nothing. "
    "Neither says how accurate a model is."
)


def format_rank(rank: int | float | str | None) -> str:
    """A rank as it is typed: "full", "32", "25%" or "90% energy"."""
    if rank is None or isinstance(rank, str):
        return rank or "full"
    return f"{rank}" if isinstance(rank, int) else f"{100 * rank:.6g}%"


def format_value(kind: str, value: Any) -> str:
    """The value of a parameter as it is typed. kind: of its Control."""
    if kind == "rank":
        return format_rank(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def params_in_words(params: Any, changed: bool = False) -> list[str]:
    """A method's parameters such as "mapping", "rank 25%", "scaling 0.8". changed: only those that are not defaults."""
    known, defaults = controls(type(params)), asdict(type(params)())
    words = []
    for name, value in values_to_name(params).items():
        control = known[name]
        if not changed or value != defaults[name]:
            shown = format_value(control.kind, value)
            words.append(shown if control.kind == "choice" else f"{control.label.lower()} {shown}")
    return words


def settings_title(settings: MergeSettings) -> str:
    """The settings in a few words, without defaults: "SFTM, rank 25%, scaling 0.8, weights set"."""
    weighted = any(weight != 1.0 for weight in settings.weights)
    words = [METHODS[settings.method].title, *params_in_words(settings.params, changed=True)]
    return ", ".join([*words, *(["weights set"] if weighted else [])])
