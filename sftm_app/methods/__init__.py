"""The table of merge methods. Adding one is a file here and a line below."""

from __future__ import annotations

from sftm_app.methods import average, sftm, task_arithmetic
from sftm_app.methods.base import Method
from sftm_app.methods.params import refuse_unknown

METHODS: dict[str, Method] = {method.name: method for method in (sftm.METHOD, average.METHOD, task_arithmetic.METHOD)}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises
        RecipeError: no such method; the nearest known name is given.
    """
    refuse_unknown([name], METHODS, "method")
    return METHODS[name]
