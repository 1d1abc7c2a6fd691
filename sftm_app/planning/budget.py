"""Whether a merge keeps to a memory budget, and with which ranks it would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psutil

from sftm_app.errors import ResourceError
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, STORED_MAX
from sftm_app.linalg.system import ONE_GEMM_ELEMENTS
from sftm_app.planning.memory import MemoryModel, peak_bytes
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.units import format_bytes, format_distinct


def fitting_rank(entries: Sequence[PlanEntry], model: MemoryModel, n_bytes: int) -> int:
    """The highest rank, as a count of features, with which the merge is expected to take at most `n_bytes`.

    Args:
        entries, model: the merge; the rank in the model's params does not matter.
        n_bytes: what it may take.

    Returns:
        The shorter side of the largest layer if all features fit; 0 if no rank does, or the method has none.
    """
    if not hasattr(model.params, "rank"):
        return 0

    def fits_exactly(rank: int) -> bool:
        return peak_bytes(entries, replace(model, params=replace(model.params, rank=rank))) <= n_bytes

    shapes = [part.shape_in(entry.output.shape) for entry in entries for part in entry.parts]
    sides = [min(shape) for shape in shapes]
    # Beyond these ranks a layer is solved or measured in another way, which may take less: these must fit as well.
    highest_cuts = {side - 1 for side in sides}
    one_gemm = {ONE_GEMM_ELEMENTS // max(sum(shape), 1) for shape in shapes}
    limits = {AUTO_DIRECT_MAX, STORED_MAX, *highest_cuts, *one_gemm}
    edges = ({limit // len(model.found.tasks) for limit in limits} | highest_cuts) - {0}

    def fits(rank: int) -> bool:
        return fits_exactly(rank) and all(fits_exactly(edge) for edge in edges if edge < rank)

    low, high = 0, max(sides, default=0)
    if high and fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def budget_note(entries: Sequence[PlanEntry], model: MemoryModel, needed: int, memory_bytes: int | None) -> str | None:
    """A sentence on the budget, or on a merge that takes more than is free; None if there is nothing to say.

    Args:
        entries, model: the merge.
        needed: its peak in bytes.
        memory_bytes: the budget, or None.
    """
    if model.device.type == "cuda":
        return None  # layers that do not fit there go to the CPU, see engine.placing
    limit = memory_bytes or psutil.virtual_memory().available
    if needed <= limit:
        best = fitting_rank(entries, model, limit) if memory_bytes else 0
        fits = f"The merge fits the budget of {format_bytes(limit)}"
        return f"{fits}{f'; so do ranks up to {best}' if best else ''}." if memory_bytes else None
    than = f"the budget of {format_bytes(limit)}" if memory_bytes else f"the {format_bytes(limit)} that are free"
    return f"The merge needs more than {than}. {_remedy(entries, model, limit)}"


def is_over_budget(plan: Plan) -> bool:
    """Whether a merge needs more memory than it may take. (On a GPU the layers that do are computed on the CPU.)"""
    return plan.memory_bytes is not None and plan.device.type != "cuda" and plan.peak_bytes > plan.memory_bytes


def check_budget(plan: Plan, n_threads: int) -> None:
    """Refuse a merge that is over its budget.

    Raises:
        ResourceError: with the ranks that would fit.
    """
    if plan.memory_bytes is not None and is_over_budget(plan):
        needed, allowed = format_distinct(plan.peak_bytes, plan.memory_bytes)
        model = memory_model(plan, n_threads)
        raise ResourceError(
            f"This merge may need {needed} of memory, and its budget (`memory`) is {allowed}. "
            f"{_remedy(plan.entries, model, plan.memory_bytes)}"
        )


def memory_model(plan: Plan, n_threads: int) -> MemoryModel:
    """The memory model of a plan."""
    recipe = plan.recipe
    return MemoryModel(plan.method, recipe.params, plan.preflight, recipe.output, plan.device, n_threads)


def _remedy(entries: Sequence[PlanEntry], model: MemoryModel, limit: int) -> str:
    best = fitting_rank(entries, model, limit)
    if best:
        return f"Ranks up to {best} fit: lower the rank, or allow more memory."
    has_rank = hasattr(model.params, "rank")
    return "No rank fits: allow more memory, or merge fewer tasks." if has_rank else "Allow more memory."
