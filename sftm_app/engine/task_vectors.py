"""What a method must know of whole task vectors before the first layer: see `Method.prepare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sftm_app.engine.task_matrices import read_pair, read_task_matrix
from sftm_app.linalg.low_rank import dense
from sftm_app.methods.base import Method
from sftm_app.planning.keys import at_scaling_1, vector_key
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan
from sftm_app.planning.planner import merged_tensors
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.disk_cache import DiskCache
from sftm_app.weights.reader import open_reader

# Elements of a tensor that are read at a time.
READ_ELEMENTS = 1 << 17

Tensors = Sequence[tuple[str, str | LoraPair]]


def prepare_plan(plan: Plan, session: Session) -> Plan:
    """The plan with what its method must know of the task vectors. Reads nothing where it need not know any."""
    if plan.prepared is not None:
        return plan
    return replace(plan, prepared=prepare(plan.preflight, plan.method, plan.recipe.params, session.cache))


def prepare(found: Preflight, method: Method, params: Any, cache: DiskCache | None) -> tuple[float, ...]:
    """What a method must know of every task vector; empty where it need not know any.

    Args:
        found: base and tasks. A task vector is all tensors that the task holds and the method merges itself.
        method, params: of the merge.
        cache: where the numbers are cached.

    Raises:
        NumericalError: an input holds NaN or Inf.
        CheckpointError: an input changed while in use.
    """
    look = method.prepare(at_scaling_1(params)) if method.prepare else None
    if look is None:
        return ()
    prepared = []
    for task in range(len(found.tasks)):
        tensors = merged_tensors(found, method, task)
        read = partial(task_vector, found, task, tensors)
        key = vector_key(found, task, tensors, method.name, at_scaling_1(params))
        prepared.append(float(cache.value(key, lambda read=read: repr(look(read)))) if cache else look(read))  # type: ignore[misc]
    return tuple(prepared)


def task_vector(found: Preflight, task: int, tensors: Tensors) -> Iterator[Tensor]:
    """The changes of one task's tensors, on the CPU in float32, at most READ_ELEMENTS at a time; LoRA pairs whole."""
    cpu = torch.device("cpu")
    with open_reader(found.base) as read_base, open_reader(found.tasks[task].checkpoint) as read:
        for name, source in tensors:
            if isinstance(source, LoraPair):
                is_stack = source.n_experts and source.expert is None
                for expert in range(source.n_experts) if is_stack else (None,):
                    yield dense(read_pair(read, source, expert))
                continue
            n = torch.Size(found.base.tensors[name].shape).numel()
            for start in range(0, n, READ_ELEMENTS):
                span = (start, min(start + READ_ELEMENTS, n))
                origin = read_base.finite(name, COMPUTE_DTYPE, span=span)
                change = read_task_matrix(read, source, origin, cpu, span=span)
                assert isinstance(change, Tensor)
                yield change
