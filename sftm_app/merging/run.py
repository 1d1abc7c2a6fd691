"""Run a plan: a generator that yields one merged tensor after the other. Nothing is written here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from sftm_app.checkpoints.adapter_config import LoraPair
from sftm_app.checkpoints.checkpoint import TensorReader, open_reader
from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.checkpoints.roles import Part, Role, assign
from sftm_app.errors import NumericalError, ResourceError
from sftm_app.linalg.gram_svd import GRAM_MIN
from sftm_app.linalg.low_rank import Change, LowRank, add_to, weighted_sum
from sftm_app.linalg.parallel import each
from sftm_app.linalg.svd import Factors, Rank, factorise, n_kept
from sftm_app.merging.factor_cache import FactorKey, factor_key
from sftm_app.merging.methods.base import Features, Layer, Merged, Method, weighted_average
from sftm_app.merging.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.merging.report import TensorRecord


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the output, on the CPU, with the shape and dtype of the plan, and its lines of the report.

    records: one, or one for each of the entry's parts.
    """

    entry: PlanEntry
    tensor: Tensor
    records: tuple[TensorRecord, ...]


@dataclass(frozen=True)
class MergedChange:
    """What is added to one linear map inside a tensor: an (m, n) change, or one of the tensor's own shape (no part)."""

    entry: PlanEntry
    part: Part | None
    change: Change
    record: TensorRecord


class FactorSource(Protocol):
    """Where factors are kept between merges, such as factor_cache.FactorStore."""

    def get(self, key: FactorKey | None, make: Callable[[], Factors]) -> Factors: ...


def run(plan: Plan, factors: FactorSource | None = None) -> Iterator[MergedTensor]:
    """Merge every tensor of the plan, in its order.

    factors: gives those of a task matrix that it has kept, and keeps new ones.

    Raises
        NumericalError: NaN or Inf in an input, or a result that does not fit the output's type.
        ResourceError: out of memory; names the layer.
        CheckpointError: an input changed while in use.
    """
    with _readers(plan) as (base, tasks):
        for entry in plan.entries:
            with _saying_where(plan, entry):
                merged = _merge_entry(plan, entry, base, tasks, factors)
            yield merged
            del merged  # not to be held while the next one is made


def run_changes(plan: Plan, factors: FactorSource | None = None) -> Iterator[MergedChange]:
    """What every tensor of the plan is changed by, part by part, without adding it to the base. Otherwise as run()."""
    with _readers(plan) as (base, tasks):
        for entry in plan.entries:
            if entry.rule == "copy":
                continue
            for expert, parts in _by_expert(entry):
                with _saying_where(plan, entry):
                    whole = any(isinstance(source, str) for source in entry.sources)
                    origin = _origin(plan, entry, base, expert) if whole else None
                    made = list(_merge_parts(plan, entry, parts, tasks, origin, factors))
                yield from made
                del made


def individual_tensors(found: Preflight, index: int) -> dict[str, Tensor]:
    """One task's own model: its tensors under the names in its files; for an adapter the base's with its changes.

    Heads of an adapter come under the names in its files.
    """
    task, match = found.tasks[index], found.matches[index]
    with open_reader(task.checkpoint) as read:
        if task.checkpoint.adapter is None:
            return {name: read(name) for name in task.checkpoint.tensors}
        with open_reader(found.base) as base:
            tensors = {name: _held(found, index, name, base, read) for name in found.base.tensors}
        return tensors | {name: read(name) for name in match.heads}


def individual_tensor(found: Preflight, index: int, name: str) -> Tensor:
    """What one task's own model holds for the base's tensor `name`: its own, one with a LoRA change, or the base's."""
    with open_reader(found.base) as base, open_reader(found.tasks[index].checkpoint) as read:
        return _held(found, index, name, base, read)


def _held(found: Preflight, index: int, name: str, base: TensorReader, read: TensorReader) -> Tensor:
    source = found.matches[index].source(name)
    if not isinstance(source, LoraPair):
        return base(name) if source is None else read(source)
    parts = assign(found.base.tensors[name], found.architecture.owners.get(name)).parts
    part = parts[0] if parts else Part(transposed=source.transposed)
    changed = base(name).to(COMPUTE_DTYPE, copy=True)
    add_to(part.of(changed), read_pair(read, source))
    return changed


@contextmanager
def _readers(plan: Plan) -> Iterator[tuple[TensorReader, list[TensorReader]]]:
    with ExitStack() as stack:
        base = stack.enter_context(open_reader(plan.preflight.base))
        yield base, [stack.enter_context(open_reader(task.checkpoint)) for task in plan.preflight.tasks]


@contextmanager
def _saying_where(plan: Plan, entry: PlanEntry) -> Iterator[None]:
    """A lack of memory as a sentence that names the layer."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory at {entry.name!r}, which needs about {plan.peak_bytes / 1e9:.1f} GB. "
            "Choose a lower rank or fewer tasks, close other programs, or choose the device cpu."
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """torch reports a lack of memory on the CPU as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _merge_entry(
    plan: Plan,
    entry: PlanEntry,
    base: TensorReader,
    tasks: Sequence[TensorReader],
    factors: FactorSource | None,
) -> MergedTensor:
    started = time.perf_counter()
    if entry.rule == "copy":
        return MergedTensor(entry, _copied(plan, entry, base), (_record(entry, None, started, {}),))
    if 0 in entry.output.shape:
        empty = torch.empty(entry.output.shape, dtype=entry.output.dtype)
        return MergedTensor(entry, empty, (_record(entry, None, started, {}),))
    records = []
    stack: Tensor | None = None
    for expert, parts in _by_expert(entry):
        origin = _origin(plan, entry, base, expert)
        # A part's changes are read again while it is merged, so its base must stay as it is until then.
        for merged in _merge_parts(plan, entry, parts, tasks, origin, factors):
            add_to(merged.part.in_slice.of(origin) if merged.part else origin, merged.change)
            records.append(merged.record)
            del merged
        result = _fit(entry, origin)
        if expert is None:
            return MergedTensor(entry, result, tuple(records))
        stack = torch.empty(entry.output.shape, dtype=entry.output.dtype) if stack is None else stack
        stack[expert] = result
    assert stack is not None
    return MergedTensor(entry, stack, tuple(records))


def _by_expert(entry: PlanEntry) -> Iterator[tuple[int | None, tuple[Part | None, ...]]]:
    """The parts of a tensor, expert by expert where it is a stack; else all of them under None."""
    for expert, parts in groupby(entry.parts or (None,), lambda part: part.expert if part else None):
        yield expert, tuple(parts)


def _copied(plan: Plan, entry: PlanEntry, base: TensorReader) -> Tensor:
    if entry.role is Role.BUFFER:
        return base(entry.name)
    stored = plan.preflight.base.tensors[entry.name].dtype
    return _fit(entry, base.finite(entry.name, torch.float64 if stored == torch.float64 else COMPUTE_DTYPE))


def _record(entry: PlanEntry, part: Part | None, started: float, figures: dict[str, Any]) -> TensorRecord:
    label, shape = (part.label, part.shape_in(entry.output.shape)) if part and part.label else ("", entry.output.shape)
    name = f"{entry.name} [{label}]" if label else entry.name
    return TensorRecord(name, entry.role.value, entry.rule, entry.why, shape, time.perf_counter() - started, figures)


def _origin(plan: Plan, entry: PlanEntry, base: TensorReader, expert: int | None) -> Tensor:
    return base.finite(entry.name, COMPUTE_DTYPE, expert).to(_device(plan, entry))


def _device(plan: Plan, entry: PlanEntry) -> torch.device:
    """Where an entry is computed: MPS has neither an SVD nor float64, so superpositions go to the CPU there."""
    return torch.device("cpu") if plan.device.type == "mps" and entry.rule == "superpose" else plan.device


class _Changes(Sequence[Change]):
    """The changes of the tasks that hold a tensor, each read when it is asked for and never kept.

    Sequences of them would take T times the layer: a method that goes from one to the next holds one at a time.
    """

    def __init__(self, read: Callable[[int], Change], indices: Sequence[int], device: torch.device) -> None:
        self.device = device
        self._read = read
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Change:  # type: ignore[override]  # one at a time, no slices
        return self._read(self._indices[index])


def read_change(
    read: TensorReader,
    source: str | LoraPair,
    origin: Tensor | None,
    device: torch.device,
    expert: int | None = None,
) -> Change:
    """A task's tensor minus the base's (`origin`), both upcast first: in fp16 60000 - (-60000) would be infinite.

    A LoRA pair needs no origin. expert: only this entry of a stack, of which `origin` is then the same entry.
    """
    if isinstance(source, LoraPair):
        thin = read_pair(read, source)
        return LowRank(thin.left.to(device), thin.right.to(device))
    assert origin is not None
    return read.finite(source, origin.dtype, expert).to(device).sub_(origin)


def read_pair(read: TensorReader, pair: LoraPair) -> LowRank:
    """scaling * B @ A as a low-rank linear map (m, n) in the compute dtype, on the CPU."""
    A, B = read.finite(pair.a, COMPUTE_DTYPE), read.finite(pair.b, COMPUTE_DTYPE)
    return LowRank(B.reshape(len(B), -1) * pair.scaling, A.reshape(len(A), -1))


def _merge_parts(
    plan: Plan,
    entry: PlanEntry,
    parts: Sequence[Part | None],
    tasks: Sequence[TensorReader],
    origin: Tensor | None,
    factors: FactorSource | None,
) -> Iterator[MergedChange]:
    """The merged change of each part, by the entry's rule; `origin` is the base's tensor, or the parts' one expert."""
    present = [index for index, source in enumerate(entry.sources) if source is not None]
    weights = [plan.preflight.tasks[index].weight for index in present]
    partly = {"tasks": [plan.task_names[index] for index in present]} if len(present) < len(entry.sources) else {}
    # A full checkpoint that lacks a tensor says nothing of it; an adapter says that it is the base's.
    idle_weight = sum(
        task.weight
        for task, source in zip(plan.preflight.tasks, entry.sources, strict=True)
        if source is None and task.checkpoint.adapter is not None
    )
    for part in parts:
        started = time.perf_counter()

        def read(index: int, part: Part | None = part) -> Change:
            source, expert = entry.sources[index], part.expert if part else None
            assert source is not None
            change = read_change(tasks[index], source, origin, _device(plan, entry), expert)
            return part_of(change, part.in_slice if part else None)

        try:
            changes = _Changes(read, present, _device(plan, entry))
            merged = merge_changes(plan.method, plan.recipe.params, entry, changes, weights, idle_weight, factors)
        except NumericalError as error:
            raise NumericalError(f"{_record(entry, part, started, {}).name!r}: {error}") from None
        yield MergedChange(entry, part, merged.delta, _record(entry, part, started, merged.figures | partly))
        del merged


def part_of(change: Change, part: Part | None) -> Change:
    """A whole tensor's change as that of one of its parts, (m, n)."""
    if part is None or isinstance(change, LowRank):
        # A LoRA pair is a linear map already; it changes all of a tensor, never one expert of a stack.
        return change.rows(*part.rows) if isinstance(change, LowRank) and part and part.rows else change
    return part.of(change)


def merge_changes(
    method: Method,
    params: Any,
    entry: PlanEntry,
    changes: Sequence[Change],
    weights: Sequence[float],
    idle_weight: float = 0.0,
    factors: FactorSource | None = None,
) -> Merged:
    """The merged change of one linear map or tensor by the entry's rule, and figures for the report."""
    if entry.role is Role.MATRIX:
        whole, leading = partial(_factorise, factors, changes), partial(_leading, factors, changes)
        return method.merge_matrix(Layer(changes, weights, whole, idle_weight, leading), params)
    if entry.rule == "average":
        return Merged(weighted_average(changes, weights, idle_weight))
    scaling = method.scaling(params)
    return Merged(weighted_sum(changes, [scaling * weight for weight in weights]))


def _factorise(factors: FactorSource | None, changes: Sequence[Change], task: int) -> Factors:
    return _features(factors, changes[task], None).factors


def _leading(factors: FactorSource | None, changes: Sequence[Change], rank: Rank) -> list[Features]:
    """Every task's features; several tasks at a time, where threads compute on a processor of their own."""
    tasks = range(len(changes))
    if isinstance(changes, _Changes) and changes.device.type != "cpu":
        return [_features(factors, changes[task], rank) for task in tasks]
    return each(lambda task: _features(factors, changes[task], rank), tasks)


# Of the energy; below, rounding of the gains is all that could be missing.
LOST_MIN = 1e-5


def _features(source: FactorSource | None, change: Change, rank: Rank) -> Features:
    """A rank cuts the features of a large matrix while they are computed; of others all are as cheap to have.

    A share of energy is asked of all features.
    """
    shape = change.shape
    thin = isinstance(change, LowRank) or min(shape) < GRAM_MIN
    cut = None if thin or isinstance(rank, str) or n_kept(rank, *shape) == min(shape) else rank
    make = partial(factorise, change) if cut is None else partial(factorise, change, cut)
    made = source.get(factor_key(change, cut), make).cut(cut) if source else make()
    if cut is None:
        return Features(made)
    energy = float(torch.linalg.vector_norm(change)) ** 2
    lost = energy - float(made.S.double().square().sum())
    return Features(made, lost if lost > LOST_MIN * energy else 0.0)


def _fit(entry: PlanEntry, tensor: Tensor) -> Tensor:
    """The result in the output's type, on the CPU; a value that does not fit is refused, not turned into Inf."""
    fitted = tensor.to(entry.output.dtype)
    # float8_e4m3fn has no Inf and saturates to NaN: seen after the cast, but not in float8 itself.
    seen = fitted.float() if fitted.itemsize == 1 else fitted
    if not all(math.isfinite(end) for end in torch.aminmax(seen)):  # no copy of it, unlike isfinite
        n_bad = int(torch.count_nonzero(~torch.isfinite(seen)))
        raise NumericalError(
            f"{entry.name!r}: {n_bad} merged values do not fit {str(entry.output.dtype).removeprefix('torch.')} "
            f"(largest {float(tensor.abs().max()):.3g}). Choose float32 or bfloat16 as output dtype, "
            "or a lower scaling."
        )
    return fitted.cpu()
