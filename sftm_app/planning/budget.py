"""A budget of memory: whether a merge keeps to it, and with which ranks it would.

Without one, a merge is only compared with what is free now: a system may make room in ways that nobody can foresee.
"""

from __future__ import annotations

from dataclasses import fields, replace

import psutil

from sftm_app.errors import ResourceError
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, STORED_MAX
from sftm_app.linalg.system import AT_ONCE_ELEMENTS
from sftm_app.planning.memory import peak_bytes
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import parse_size
from sftm_app.units import format_bytes, format_distinct


def fitting_rank(plan: Plan, n_bytes: int) -> int:
    """The highest rank, as a count of features, with which the merge is expected to take at most `n_bytes`.

    The shorter side of the largest layer when all features fit; 0 when no rank does, or the method has none.
    """
    if all(item.name != "rank" for item in fields(plan.recipe.params)):
        return 0

    def fits_exactly(rank: int) -> bool:
        params = replace(plan.recipe.params, rank=rank)
        return peak_bytes(plan.entries, plan.preflight, params, plan.recipe.output, plan.device) <= n_bytes

    shapes = [part.shape_in(entry.output.shape) for entry in plan.entries for part in entry.parts]
    sides = [min(shape) for shape in shapes]
    # Beyond these ranks a layer is solved or measured in another way, which may take less: these have to fit as well.
    highest_cuts = {side - 1 for side in sides}
    at_once = {AT_ONCE_ELEMENTS // max(sum(shape), 1) for shape in shapes}
    limits = {AUTO_DIRECT_MAX, STORED_MAX, *highest_cuts, *at_once}
    edges = ({limit // len(plan.preflight.tasks) for limit in limits} | highest_cuts) - {0}

    def fits(rank: int) -> bool:
        return fits_exactly(rank) and all(fits_exactly(edge) for edge in edges if edge < rank)

    low, high = 0, max(sides, default=0)
    if high and fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def budget_note(plan: Plan) -> str | None:
    """A sentence on what fits into the recipe's budget, or on a merge that takes more than is free; else None."""
    given = plan.recipe.memory
    if plan.device.type == "cuda":
        return None  # what does not fit there goes to the CPU, see placing
    limit = parse_size(given) if given else psutil.virtual_memory().available
    if given and plan.peak_bytes <= limit:
        best = fitting_rank(plan, limit)
        return f"That keeps to the budget of {given}{f', as ranks up to {best} do' if best else ''}."
    if plan.peak_bytes <= limit:
        return None
    than = f"the budget of {given}" if given else f"the {format_bytes(limit)} that are free"
    return f"That is more than {than}. {_way(plan, limit)}"


def is_over_budget(plan: Plan) -> bool:
    """Whether a merge is expected to take more memory than the recipe allows. (On a GPU the layers that need more are
    computed on the CPU instead.)"""
    given = plan.recipe.memory
    return given is not None and plan.device.type != "cuda" and plan.peak_bytes > parse_size(given)


def check_budget(plan: Plan) -> None:
    """Refuse a merge that is over its budget.

    Raises
        ResourceError: with the ranks that would fit.
    """
    given = plan.recipe.memory
    if given and is_over_budget(plan):
        limit = parse_size(given)
        needed, allowed = format_distinct(plan.peak_bytes, limit)
        raise ResourceError(
            f"This merge may need {needed} of memory, and its budget (`memory`) is {allowed}. {_way(plan, limit)}"
        )


def _way(plan: Plan, limit: int) -> str:
    best = fitting_rank(plan, limit)
    if best:
        return f"Ranks up to {best} fit: set the rank to that or less, or allow more memory."
    has_rank = any(item.name == "rank" for item in fields(plan.recipe.params))
    return "No rank fits: allow more memory, or merge fewer tasks." if has_rank else "Allow more memory."
