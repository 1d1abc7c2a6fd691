"""A method with its parameters and the tasks' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftm_app.errors import RecipeError
from sftm_app.methods import get_method
from sftm_app.methods.params import make_params

# Larger weights times a change would leave float32.
MAX_WEIGHT = 1e30
WEIGHTS = (
    f"Give a number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g} other than 0. A negative weight takes away what the task "
    "changed; to leave a task out, remove it."
)


@dataclass(frozen=True)
class MergeSettings:
    """A method, its params, and one weight per task, not 0, of the workspace, in order."""

    method: str
    params: Any
    weights: tuple[float, ...]


def merge_settings(method: str, values: Mapping[str, Any], weights: Sequence[float]) -> MergeSettings:
    """Check settings as people type them.

    Args:
        method: a method's name.
        values: its parameters by name; missing ones get their defaults.
        weights: one per task.

    Raises:
        RecipeError: there is no such method or parameter, a value is out of range, or a weight is 0.
    """
    params = make_params(get_method(method).params, values, f"params of {method}")
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < abs(weight) <= MAX_WEIGHT:
            raise RecipeError(f"The task weight is {weight!r}. {WEIGHTS}")
    return MergeSettings(method, params, tuple(float(weight) for weight in weights))
