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


@dataclass(frozen=True)
class MergeSettings:
    """A method, its params, and one positive weight per task of the workspace, in order."""

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
        RecipeError: there is no such method or parameter, a value is out of range, or a weight is not positive.
    """
    params = make_params(get_method(method).params, values, f"params of {method}")
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight <= MAX_WEIGHT:
            raise RecipeError(
                f"The task weight {weight!r} is not a positive number of at most {MAX_WEIGHT:g}. Give one above 0."
            )
    return MergeSettings(method, params, tuple(float(weight) for weight in weights))
