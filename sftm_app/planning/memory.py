"""The memory that a merge takes, from shapes, ranks and types alone.

Only one tensor is in memory at a time (one expert of a stack), as float32. What a method takes on top it says itself
(`Method.workspace`); what measuring takes is added here. See `linalg.workspace` for the parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sftm_app.architecture.roles import Part
from sftm_app.linalg.calibration import calibrate_bytes
from sftm_app.linalg.workspace import (
    FLOAT_BYTES,
    DeltaSize,
    LayerSize,
    adding_bytes,
    combination_size,
    factorise_bytes,
    factorise_double_bytes,
    factorise_thin_bytes,
    measure_bytes,
    sum_bytes,
)
from sftm_app.methods.base import Method
from sftm_app.planning.plan import PlanEntry
from sftm_app.planning.recipe import Output
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair

# What the first factorisation and the first products allocate once and keep.
FIRST_USE_BYTES = 8_000_000
# Elements of a piece, where a tensor is merged in pieces.
SPAN = 1 << 17
# One task's tensor is read and converted while the GPU computes for another.
GPU_TASKS = 2


@dataclass(frozen=True)
class MemoryModel:
    """What the memory of an entry depends on, apart from the entry itself."""

    method: Method
    params: Any
    found: Preflight
    output: Output
    device: torch.device
    n_threads: int

    @property
    def writes_adapter(self) -> bool:
        """Whether the output is a LoRA adapter, for which every delta is factorised again."""
        return self.output.kind == "adapter"


def tasks_at_once(device: torch.device, n_threads: int) -> int:
    """How many tasks of a layer are read and factorised at once. (On MPS layers go to the CPU.)"""
    return GPU_TASKS if device.type == "cuda" else n_threads


def peak_bytes(entries: Sequence[PlanEntry], model: MemoryModel) -> int:
    """Bytes at the worst moment of a merge that finds nothing in the cache."""
    return run_bytes([entry_bytes(entry, model) for entry in entries], entries, model)


def run_bytes(needs: Sequence[int], entries: Sequence[PlanEntry], model: MemoryModel) -> int:
    """Bytes at the worst moment of a run whose entries need `needs` bytes each.

    That is its largest tensor, or the heads of one task. An adapter is held in memory until it is written.
    """
    held = 0
    if model.writes_adapter:
        held = sum(entry.adapter_bytes(model.output.rank) for entry in entries)
        # A low-rank delta is factorised while the next one is merged.
        deltas = filter(None, (adapter_delta(entry, model) for entry in entries))
        held += max((delta.n_bytes for delta in deltas if delta.rank is not None), default=0)
    heads = (
        sum(task.checkpoint.tensors[name].n_bytes for name in match.heads)
        for task, match in zip(model.found.tasks, model.found.matches, strict=True)
    )
    return FIRST_USE_BYTES + held + max(max(needs, default=0), *heads)


def entry_bytes(entry: PlanEntry, model: MemoryModel) -> int:
    """Bytes that one tensor takes at the worst moment, if it is not cached."""
    stored = [model.found.base.tensors[entry.name].dtype]
    if entry.rule == "copy":
        # An adapter holds nothing of a tensor that no task changes.
        copied = torch.Size(entry.output.shape).numel() * _copying(stored[0], entry.output.dtype)
        return 0 if model.writes_adapter else copied
    stored += [
        task.checkpoint.tensors[source].dtype
        for task, source in zip(model.found.tasks, entry.sources, strict=True)
        if isinstance(source, str)
    ]
    if entry.in_pieces and not model.writes_adapter:
        stored_size = max(0 if dtype == torch.float32 else dtype.itemsize for dtype in stored)
        span = min(SPAN, torch.Size(entry.output.shape).numel())
        # Base, sum and one task's piece; the allocator keeps about as many again.
        return entry.output.n_bytes + model.n_threads * span * (6 * FLOAT_BYTES + stored_size)
    stack, count = _held_at_once(entry)
    upcasting, fitting = _upcasting(stored, count), _fitting(entry, count)
    n_at_once = tasks_at_once(model.device, model.n_threads)
    sizes = layer_sizes(entry, FLOAT_BYTES * count, upcasting, n_at_once)
    merging = max(_merging(size, entry, model) for size in sizes)
    merged = stack + FLOAT_BYTES * count + max(upcasting, fitting, merging)
    again = adapter_delta(entry, model) if model.writes_adapter else None
    return max(merged, again.n_bytes) if again and again.rank is None else merged


@dataclass(frozen=True)
class AdapterDelta:
    """The delta of a tensor's linear map (m, n), which an adapter needs factorised in float64.

    Attributes:
        m, n: its shape.
        rank: of a low-rank delta; None for a dense one.
        n_bytes: the delta, and what factorising it takes.
    """

    m: int
    n: int
    rank: int | None
    n_bytes: int


def adapter_delta(entry: PlanEntry, model: MemoryModel) -> AdapterDelta | None:
    """What an adapter needs of an entry; None where it is no linear map. (A stack of experts is not a single one.)"""
    if entry.rule == "copy" or not entry.parts or entry.in_experts:
        return None
    sizes = layer_sizes(entry)
    m, n = sum(size.m for size in sizes), sizes[0].n
    deltas = [delta_size(size, entry, model) for size in sizes]
    if not all(delta.low_rank for delta in deltas):
        n_copies = 1 if len(sizes) == 1 else 2  # fused maps that were merged one by one are joined
        return AdapterDelta(m, n, None, n_copies * FLOAT_BYTES * m * n + factorise_double_bytes(m, n))
    rank = sum(delta_rank(size, entry, model) for size in sizes)
    held = sum(delta.n_bytes for delta in deltas)
    return AdapterDelta(m, n, rank, held + factorise_thin_bytes(m, n, rank))


def _merging(size: LayerSize, entry: PlanEntry, model: MemoryModel) -> int:
    """Bytes of merging one linear map, or one tensor of another role, and of measuring and adding the result."""
    method, params = model.method, model.params
    work = method.workspace(size, params) if entry.rule == "method" else sum_bytes(size)
    delta = delta_size(size, entry, model)
    merging = max(work, adding_bytes(size, delta))
    computed = size.computed(method.features(params) if method.features else None)
    held = sum(map(size.thin_bytes, computed))
    if entry.calibrated:
        merging = max(
            merging, calibrate_bytes(size, delta, delta_rank(size, entry, model)) + (held if method.features else 0)
        )
    if entry.measured:
        # A method that asks for no features has its delta while they are computed.
        factorising = 0 if method.features else delta.n_bytes + factorise_bytes(size, computed)
        merging = max(merging, factorising, held + measure_bytes(size, computed, delta))
    return merging


def delta_size(size: LayerSize, entry: PlanEntry, model: MemoryModel) -> DeltaSize:
    """The size of the delta of one part of an entry."""
    method = model.method
    if entry.rule == "method" and method.features:
        return combination_size(size, size.kept(method.features(model.params)))
    thin = entry.rule != "method" or method.elementwise or method.stays_low_rank
    if thin and all(size.thin):  # thin matrices next to each other
        return DeltaSize(size.factor_bytes, low_rank=True)
    return DeltaSize(size.matrix_bytes, low_rank=False)


def delta_rank(size: LayerSize, entry: PlanEntry, model: MemoryModel) -> int:
    """How many directions the delta of one part of an entry has at most."""
    if not delta_size(size, entry, model).low_rank:
        return size.k
    method = model.method
    return sum(size.kept(method.features(model.params) if entry.rule == "method" and method.features else None))


def cached_bytes(entry: PlanEntry, model: MemoryModel) -> int:
    """Bytes that one tensor takes at the worst moment, if all its layers are cached.

    That is the base's tensor, and the delta with what it takes to add it, or what it takes to convert the tensor.
    """
    stack, count = _held_at_once(entry)
    sizes = layer_sizes(entry, FLOAT_BYTES * count, 0, 1)
    upcasting = _upcasting([model.found.base.tensors[entry.name].dtype], count)
    adding = max(adding_bytes(size, delta_size(size, entry, model)) for size in sizes)
    return stack + FLOAT_BYTES * count + max(upcasting, _fitting(entry, count), adding)


def layer_sizes(entry: PlanEntry, tensor_bytes: int = 0, stored_bytes: int = 0, n_at_once: int = 1) -> list[LayerSize]:
    """The sizes of an entry's parts, or of the tensor as a column where it has none."""
    return [_layer_size(entry, part, tensor_bytes, stored_bytes, n_at_once) for part in entry.parts or (None,)]


def _layer_size(entry: PlanEntry, part: Part | None, tensor_bytes: int, stored_bytes: int, n_at_once: int) -> LayerSize:
    m, n = part.shape_in(entry.output.shape) if part else (torch.Size(entry.output.shape).numel(), 1)
    present = [source for source in entry.sources if source is not None]
    features = tuple(min(source.rank, m, n) if isinstance(source, LoraPair) else min(m, n) for source in present)
    thin = tuple(isinstance(source, LoraPair) for source in present)
    return LayerSize(m, n, features, thin, tensor_bytes, stored_bytes, n_at_once)


def _held_at_once(entry: PlanEntry) -> tuple[int, int]:
    """The bytes of a stack of experts that is filled one by one, and the elements of a tensor, or of one expert."""
    shape = entry.output.shape[1:] if entry.in_experts else entry.output.shape
    return entry.output.n_bytes if entry.in_experts else 0, torch.Size(shape).numel()


def _upcasting(stored: Sequence[torch.dtype], count: int) -> int:
    return max(0 if dtype == torch.float32 else dtype.itemsize * count for dtype in stored)


def _fitting(entry: PlanEntry, count: int) -> int:
    out = entry.output.dtype
    return (0 if out == torch.float32 else out.itemsize * count) + (FLOAT_BYTES * count if out.itemsize == 1 else 0)


def _copying(stored: torch.dtype, out: torch.dtype) -> int:
    """Bytes per element on the way from `stored` through the compute dtype to `out`; the same dtype is not copied."""
    if not stored.is_floating_point:
        return stored.itemsize
    compute = torch.float64 if stored == torch.float64 else torch.float32
    reading = compute.itemsize + (stored.itemsize if stored != compute else 0)
    fitting = compute.itemsize + (out.itemsize if out != compute else 0) + (FLOAT_BYTES if out.itemsize == 1 else 0)
    return max(reading, fitting)
