"""Run a plan: a generator that yields one merged tensor after the other. Nothing is written here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sftm_app.checkpoints.checkpoint import TensorReader, open_reader
from sftm_app.checkpoints.roles import Role, as_matrix, from_matrix
from sftm_app.errors import NumericalError, ResourceError
from sftm_app.linalg.svd import Factors, factorise
from sftm_app.merging.methods.base import Layer, Method, weighted_average, weighted_sum
from sftm_app.merging.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.merging.report import TensorRecord


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the output, on the CPU, with the shape and dtype of the plan, and its line of the report."""

    entry: PlanEntry
    tensor: Tensor
    record: TensorRecord


def run(plan: Plan) -> Iterator[MergedTensor]:
    """Merge every tensor of the plan, in its order.

    Raises
        NumericalError: NaN or Inf in an input, or a result that does not fit the output's type.
        ResourceError: out of memory; names the layer.
        CheckpointError: an input changed while in use.
    """
    with ExitStack() as stack:
        base = stack.enter_context(open_reader(plan.preflight.base))
        tasks = [stack.enter_context(open_reader(task.checkpoint)) for task in plan.preflight.tasks]
        for entry in plan.entries:
            started = time.perf_counter()
            try:
                tensor, figures = _merge_entry(plan, entry, base, tasks)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise ResourceError(
                    f"Out of memory at {entry.name!r}, which needs about {plan.peak_bytes / 1e9:.1f} GB. "
                    "Choose a lower rank or fewer tasks, close other programs, or choose the device cpu."
                ) from None
            seconds = time.perf_counter() - started
            record = TensorRecord(
                entry.name, entry.role.value, entry.rule, entry.why, entry.output.shape, seconds, figures
            )
            yield MergedTensor(entry, tensor, record)


def is_out_of_memory(error: BaseException) -> bool:
    """torch reports a lack of memory on the CPU as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _merge_entry(
    plan: Plan, entry: PlanEntry, base: TensorReader, tasks: Sequence[TensorReader]
) -> tuple[Tensor, dict[str, Any]]:
    if entry.rule == "copy":
        if entry.role is Role.BUFFER:
            return base(entry.name), {}
        return _fit(entry, base.finite(entry.name, torch.float64)), {}
    origin = base.finite(entry.name, COMPUTE_DTYPE).to(_device(plan, entry))
    if origin.numel() == 0:
        return origin.to("cpu", entry.output.dtype), {}
    present = [index for index, source in enumerate(entry.sources) if source is not None]
    weights = [plan.preflight.tasks[index].weight for index in present]
    changes = [read_change(tasks[index], entry.sources[index], origin) for index in present]
    try:
        delta, figures = merge_changes(plan.method, plan.recipe.params, entry, changes, weights)
    except NumericalError as error:
        raise NumericalError(f"{entry.name!r}: {error}") from None
    if len(present) < len(entry.sources):
        figures = {**figures, "tasks": [plan.task_names[index] for index in present]}
    return _fit(entry, origin + delta), figures


def _device(plan: Plan, entry: PlanEntry) -> torch.device:
    """Where an entry is computed: MPS has neither an SVD nor float64, so superpositions go to the CPU there."""
    return torch.device("cpu") if plan.device.type == "mps" and entry.rule == "superpose" else plan.device


def read_change(read: TensorReader, name: str | None, origin: Tensor) -> Tensor:
    """A task's tensor minus the base's, both upcast first: in fp16 60000 - (-60000) would be infinite."""
    assert name is not None
    return read.finite(name, origin.dtype).to(origin.device).sub_(origin)


def merge_changes(
    method: Method, params: Any, entry: PlanEntry, changes: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, dict[str, Any]]:
    """The merged change of one tensor, in its stored shape, by the entry's rule; and figures for the report."""
    if entry.role.value == "matrix":
        matrices = [as_matrix(change, entry.transposed) for change in changes]
        merged = method.merge_matrix(Layer(matrices, weights, partial(_factorise, matrices)), params)
        return from_matrix(merged.delta, entry.output.shape, entry.transposed), merged.figures
    if entry.rule == "average":
        return weighted_average(changes, weights), {}
    return weighted_sum(changes, weights, method.scaling(params)), {}


def _factorise(matrices: Sequence[Tensor], task: int) -> Factors:
    return factorise(matrices[task])


def _fit(entry: PlanEntry, tensor: Tensor) -> Tensor:
    """The result in the output's type, on the CPU; a value that does not fit is refused, not turned into Inf."""
    fitted = tensor.to(entry.output.dtype)
    # float8_e4m3fn has no Inf and saturates to NaN: isfinite after the cast sees both, but not in float8 itself.
    n_bad = int((~torch.isfinite(fitted.float() if fitted.itemsize == 1 else fitted)).sum())
    if n_bad:
        raise NumericalError(
            f"{entry.name!r}: {n_bad} merged values do not fit {str(entry.output.dtype).removeprefix('torch.')} "
            f"(largest {float(tensor.abs().max()):.3g}). Choose float32 or bfloat16 as output dtype, "
            "or a lower scaling."
        )
    return fitted.cpu()
