"""A method with its parameters and the tasks' weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftm_app.errors import RecipeError
from sftm_app.methods import get_method
from sftm_app.methods.params import make_params


@dataclass(frozen=True)
class MergeSettings:
    """What a merge is asked for. method: a key of METHODS; params: its frozen Params; weights: one positive float for
    each task of the workspace, in its order."""

    method: str
    params: Any
    weights: tuple[float, ...]


def merge_settings(method: str, values: Mapping[str, Any], weights: Sequence[float]) -> MergeSettings:
    """Settings from values as typed. values: parameters of the method by name, those left out at their defaults.

    Raises
        RecipeError: no such method or parameter, a value out of range, a weight that is no positive number.
    """
    params = make_params(get_method(method).params, values, f"params of {method}")
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or not weight > 0:
            raise RecipeError(f"The task weight {weight!r} is not a positive number. Give one above 0.")
    return MergeSettings(method, params, tuple(float(weight) for weight in weights))
