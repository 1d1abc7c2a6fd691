"""Where an entry of a plan is computed: on the plan's device, or on the CPU where that device is not up to it.

A GPU's memory may be too small for one layer, as expected or as it turns out; the other layers still go there.
MPS has neither an SVD nor float64, so superpositions go to the CPU there, and plain sums everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from sftm_app.linalg.failures import is_out_of_memory
from sftm_app.planning.memory import entry_bytes, in_spans
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.planning.recipe import parse_size

# Of the free memory of a GPU; the rest is for what its libraries take.
GPU_SHARE = 0.9

Result = TypeVar("Result")


def where_it_fits(plan: Plan, entry: PlanEntry, merge: Callable[[torch.device], Result]) -> Result:
    """merge(device) on the plan's device, or on the CPU where that one cannot: see the top of this file."""
    cpu = torch.device("cpu")
    if in_spans(entry) or (plan.device.type == "mps" and entry.rule == "superpose"):
        return merge(cpu)
    if plan.device.type != "cuda":
        return merge(plan.device)
    adapter = plan.recipe.output.kind == "adapter"
    if entry_bytes(entry, plan.preflight, plan.recipe.params, adapter, plan.device) <= gpu_budget(plan):
        try:
            return merge(plan.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # What was held there is let go with the traceback.
        torch.cuda.empty_cache()
    return merge(cpu)


def gpu_budget(plan: Plan) -> int:
    """The bytes of a GPU's memory that one entry may take now: GPU_SHARE of what is free, and no more than the recipe's
    `memory`."""
    free = torch.cuda.mem_get_info(plan.device)[0]
    # What this process's allocator holds without using it is free to us.
    free += torch.cuda.memory_reserved(plan.device) - torch.cuda.memory_allocated(plan.device)
    share = int(GPU_SHARE * free)
    return min(share, parse_size(plan.recipe.memory)) if plan.recipe.memory else share
