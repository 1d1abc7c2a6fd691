"""Where an entry is computed: on the plan's device, or on the CPU where that device cannot.

A layer that is too large for the GPU's memory, by the prediction or in fact, goes to the CPU; the others do not.
MPS has neither an SVD nor float64, so layers that a method merges go to the CPU. Tensors merged in pieces always do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from sftm_app.linalg.failures import is_out_of_memory
from sftm_app.planning.budget import memory_model
from sftm_app.planning.memory import entry_bytes
from sftm_app.planning.plan import Plan, PlanEntry

# Of the free memory of a GPU; the rest is for its libraries.
GPU_SHARE = 0.9

Result = TypeVar("Result")


def where_it_fits(plan: Plan, entry: PlanEntry, n_threads: int, merge: Callable[[torch.device], Result]) -> Result:
    """Call merge(device) for the plan's device, or for the CPU where that device cannot."""
    cpu = torch.device("cpu")
    if entry.in_pieces or (plan.device.type == "mps" and entry.rule == "method"):
        return merge(cpu)
    if plan.device.type != "cuda":
        return merge(plan.device)
    if entry_bytes(entry, memory_model(plan, n_threads)) <= gpu_budget(plan):
        try:
            return merge(plan.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # What was held on the GPU is released with the traceback.
        torch.cuda.empty_cache()
    return merge(cpu)


def gpu_budget(plan: Plan) -> int:
    """Bytes of the GPU's memory that one entry may take now: GPU_SHARE of what is free, at most the plan's budget."""
    free = torch.cuda.mem_get_info(plan.device)[0]
    # What this process's allocator holds without using it is free to us.
    free += torch.cuda.memory_reserved(plan.device) - torch.cuda.memory_allocated(plan.device)
    share = int(GPU_SHARE * free)
    return min(share, plan.memory_bytes) if plan.memory_bytes is not None else share
