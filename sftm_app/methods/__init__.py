"""The table of merge methods. To add one, write a file here and add a line below."""

from __future__ import annotations

from sftm_app.methods import average, sftm, slerp, sparsify, spectral, task_arithmetic, wudi
from sftm_app.methods.base import Method
from sftm_app.methods.params import refuse_unknown

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        sftm.METHOD,
        average.METHOD,
        task_arithmetic.METHOD,
        *sparsify.METHODS,
        slerp.METHOD,
        *spectral.METHODS,
        *wudi.METHODS,
    )
}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        RecipeError: there is no such method; the nearest known name is given.
    """
    refuse_unknown([name], METHODS, "method")
    return METHODS[name]
