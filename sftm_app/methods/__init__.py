"""The table of merge methods. To add one, write a file here and add a line below."""

from __future__ import annotations

from sftm_app.methods import average, cart, isotropic, knots, sftm, slerp, sparsify, task_arithmetic, tsv, wudi
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
        tsv.METHOD,
        *isotropic.METHODS,
        cart.METHOD,
        *wudi.METHODS,
        knots.METHOD,
    )
}


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        RecipeError: there is no such method; the nearest known name is given.
    """
    refuse_unknown([name], METHODS, "method")
    return METHODS[name]
