"""Run a plan: a generator that yields one merged tensor after the other. Nothing is written here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part, Role
from sftm_app.engine.cache import KEPT, layer_key
from sftm_app.engine.features import FactorSource, Seen, each_task, features_of, see_each, worth_keeping
from sftm_app.engine.placing import where_it_fits
from sftm_app.engine.records import TensorRecord
from sftm_app.engine.task_matrices import (
    EntryTasks,
    TaskMatrices,
    open_readers,
    read_task_matrix,
    task_matrices_of,
)
from sftm_app.errors import NumericalError, ResourceError
from sftm_app.linalg.factors import Factors, Rank
from sftm_app.linalg.failures import is_out_of_memory
from sftm_app.linalg.low_rank import Delta, add_to, weighted_sum
from sftm_app.linalg.parallel import parallel_map, single_threaded
from sftm_app.linalg.system import fits_one_gemm
from sftm_app.methods.base import CachedLayer, Features, Layer, Merged, Method, weighted_average
from sftm_app.planning.memory import SPAN, in_spans
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.units import format_bytes
from sftm_app.weights.checkpoint import TensorReader


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the output, on the CPU, with the shape and dtype of the plan, and its lines of the report.

    records: one, or one for each of the entry's parts.
    """

    entry: PlanEntry
    tensor: Tensor
    records: tuple[TensorRecord, ...]


@dataclass(frozen=True)
class MergedDelta:
    """What is added to one linear map inside a tensor: an (m, n) change, or one of the tensor's own shape (no part)."""

    entry: PlanEntry
    part: Part | None
    change: Delta
    record: TensorRecord


def run(plan: Plan, factors: FactorSource | None = None) -> Iterator[MergedTensor]:
    """Merge every tensor of the plan, in its order.

    factors: gives those of a task matrix that it has kept, and keeps new ones.

    Raises
        NumericalError: NaN or Inf in an input, or a result that does not fit the output's type.
        ResourceError: out of memory; names the layer.
        CheckpointError: an input changed while in use.
    """
    with open_readers(plan) as (base, tasks):
        for entry in plan.entries:
            with _saying_where(plan, entry):
                merged = where_it_fits(plan, entry, partial(_merge_entry, plan, entry, base, tasks, factors))
            yield merged
            del merged  # not to be held while the next one is made


def run_deltas(plan: Plan, factors: FactorSource | None = None) -> Iterator[MergedDelta]:
    """What every tensor of the plan is changed by, part by part, without adding it to the base. Otherwise as run()."""
    with open_readers(plan) as (base, tasks):
        for entry in plan.entries:
            if entry.rule == "copy":
                continue
            for expert, parts in _by_expert(entry):
                with _saying_where(plan, entry):
                    made = where_it_fits(
                        plan, entry, partial(_change_parts, plan, entry, base, tasks, factors, expert, parts)
                    )
                yield from made
                del made


def threads_for(m: int, n: int, thin: Sequence[int], n_dense: int) -> AbstractContextManager[None]:
    """Merging a map (m, n) of LoRA pairs of the ranks `thin` and of full changes."""
    return single_threaded() if computes_alone(m, n, thin, n_dense) else nullcontext()


def computes_alone(m: int, n: int, thin: Sequence[int], n_dense: int) -> bool:
    """Whether one thread merges such a map: of a few small pairs every product takes less than waking another."""
    return not n_dense and fits_one_gemm(m, n, sum(thin))


@contextmanager
def _saying_where(plan: Plan, entry: PlanEntry) -> Iterator[None]:
    """A lack of memory as a sentence that names the layer."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory at {entry.name!r}, which needs about {format_bytes(plan.peak_bytes)}. "
            "Choose a lower rank or fewer tasks, close other programs, or choose the device cpu."
        ) from None


def _merge_entry(
    plan: Plan,
    entry: PlanEntry,
    base: TensorReader,
    tasks: Sequence[TensorReader],
    factors: FactorSource | None,
    device: torch.device,
) -> MergedTensor:
    started = time.perf_counter()
    if entry.rule == "copy":
        return MergedTensor(entry, _copied(plan, entry, base), (_record(entry, None, started, {}),))
    if 0 in entry.output.shape:
        empty = torch.empty(entry.output.shape, dtype=entry.output.dtype)
        return MergedTensor(entry, empty, (_record(entry, None, started, {}),))
    if in_spans(entry):
        return _merge_spans(plan, entry, base, tasks, device)
    records = []
    stack: Tensor | None = None
    for expert, parts in _by_expert(entry):
        origin = base.finite(entry.name, COMPUTE_DTYPE, expert).to(device)
        # A part's changes are read again while it is merged, so its base must stay as it is until then.
        for merged in _merge_parts(plan, entry, parts, tasks, origin, factors, device):
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


def _merge_spans(
    plan: Plan, entry: PlanEntry, base: TensorReader, tasks: Sequence[TensorReader], device: torch.device
) -> MergedTensor:
    started = time.perf_counter()
    merged = torch.empty(entry.output.shape, dtype=entry.output.dtype)
    flat, taking = merged.view(-1), EntryTasks(plan, entry)
    n = flat.numel()

    def merge(start: int) -> tuple[int, float]:
        span = (start, min(start + SPAN, n))
        origin = base.finite(entry.name, COMPUTE_DTYPE, span=span)

        def read(index: int) -> Delta:
            source = entry.sources[index]
            assert source is not None
            return read_task_matrix(tasks[index], source, origin, device, span=span)

        changes = TaskMatrices(read, taking.present, device)
        change = merge_layer(plan.method, plan.recipe.params, entry, changes, taking.weights, taking.idle_weight)
        add_to(origin, change.delta)
        flat[slice(*span)] = origin
        return _unfit(origin, flat[slice(*span)])

    _refuse_unfit(entry, parallel_map(merge, range(0, n, SPAN)))
    parts = entry.parts or (None,)
    records = [_record(entry, part, started, taking.notes(device)) for part in parts]
    seconds = [replace(record, seconds=record.seconds / len(parts)) for record in records]
    return MergedTensor(entry, merged, tuple(seconds))


def _change_parts(
    plan: Plan,
    entry: PlanEntry,
    base: TensorReader,
    tasks: Sequence[TensorReader],
    factors: FactorSource | None,
    expert: int | None,
    parts: Sequence[Part | None],
    device: torch.device,
) -> list[MergedDelta]:
    origin = base.finite(entry.name, COMPUTE_DTYPE, expert).to(device) if entry.n_dense else None
    return list(_merge_parts(plan, entry, parts, tasks, origin, factors, device))


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


def _merge_parts(
    plan: Plan,
    entry: PlanEntry,
    parts: Sequence[Part | None],
    tasks: Sequence[TensorReader],
    origin: Tensor | None,
    factors: FactorSource | None,
    device: torch.device,
) -> Iterator[MergedDelta]:
    """The merged change of each part, by the entry's rule; `origin` is the base's tensor, or the parts' one expert."""
    taking = EntryTasks(plan, entry)
    thin = [pair.rank for pair in entry.pairs]
    for part in parts:
        started = time.perf_counter()
        m, n = part.shape_in(entry.output.shape) if part else (math.prod(entry.output.shape), 1)
        try:
            changes = task_matrices_of(plan, entry, part, taking.present, tasks, origin, device)
            source = factors if worth_keeping(entry, part) else None
            with threads_for(m, n, thin, entry.n_dense):
                merged = merge_layer(
                    plan.method, plan.recipe.params, entry, changes, taking.weights, taking.idle_weight, source
                )
        except NumericalError as error:
            raise NumericalError(f"{_record(entry, part, started, {}).name!r}: {error}") from None
        record = _record(entry, part, started, merged.figures | taking.notes(device))
        yield MergedDelta(entry, part, merged.delta, record)
        del merged


def merge_layer(
    method: Method,
    params: Any,
    entry: PlanEntry,
    changes: Sequence[Delta],
    weights: Sequence[float],
    idle_weight: float = 0.0,
    factors: FactorSource | None = None,
) -> Merged:
    """The merged change of one linear map or tensor by the entry's rule, and figures for the report."""
    if entry.role is Role.MATRIX:
        seen: Sequence[Seen | None] = [None] * len(changes)
        if factors is not None and entry.rule == "superpose":
            seen = see_each(changes, factors)

        def keep(make: Callable[[], CachedLayer], made_of: Sequence[Factors] | None = None) -> CachedLayer:
            digests = [one.key.digest if one else None for one in seen]
            device = seen[0].key.device if seen and seen[0] else torch.device("cpu")
            by = weighted_by(weights, idle_weight) if made_of is None else made_as(made_of)
            key = layer_key(digests, about_merge(method, params, by, device))
            return make() if factors is None else factors.keep(key, make)

        def features(task: int, rank: Rank = None) -> Features:
            return features_of(changes, task, rank, factors, seen[task])

        layer = Layer(
            changes,
            weights,
            lambda task: features(task).factors,
            idle_weight,
            lambda rank: each_task(changes, partial(features, rank=rank)),
            keep,
        )
        return method.merge_matrix(layer, params)
    if entry.rule == "average":
        return Merged(weighted_average(changes, weights, idle_weight))
    scaling = method.scaling(params)
    return Merged(weighted_sum(changes, [scaling * weight for weight in weights]))


def about_merge(method: Method, params: Any, by: object, device: torch.device) -> object:
    """All that what a method keeps of a layer follows from, besides the task matrices. by: the tasks' weights and that
    of idle ones, or where these do not matter, made_as() of the factors."""
    settings = {name: value for name, value in asdict(params).items() if name != "scaling"}
    return method.name, settings, by, device.type


def weighted_by(weights: Sequence[float], idle_weight: float) -> object:
    """The tasks' weights and that of idle ones."""
    return [float(weight) for weight in weights], float(idle_weight)


def made_as(factors: Sequence[Factors]) -> object:
    """How each task's factors were made, and how many are kept: of one matrix they are the same then but for
    rounding."""
    return [(f.how.removesuffix(KEPT), f.rank) for f in factors]


def _fit(entry: PlanEntry, tensor: Tensor) -> Tensor:
    """The result in the output's type, on the CPU; a value that does not fit is refused, not turned into Inf."""
    fitted = tensor.to(entry.output.dtype)
    _refuse_unfit(entry, [_unfit(tensor, fitted)])
    return fitted.cpu()


def _unfit(tensor: Tensor, fitted: Tensor) -> tuple[int, float]:
    """How many values of `fitted` are not finite, and the largest of `tensor` then."""
    # float8_e4m3fn has no Inf and saturates to NaN: seen after the cast, but not in float8 itself.
    seen = fitted.float() if fitted.itemsize == 1 else fitted
    if all(math.isfinite(end) for end in torch.aminmax(seen)):  # no copy of it, unlike isfinite
        return 0, 0.0
    return int(torch.count_nonzero(~torch.isfinite(seen))), float(tensor.abs().max())


def _refuse_unfit(entry: PlanEntry, found: Sequence[tuple[int, float]]) -> None:
    if n_bad := sum(count for count, _ in found):
        raise NumericalError(
            f"{entry.name!r}: {n_bad} merged values do not fit {str(entry.output.dtype).removeprefix('torch.')} "
            f"(largest {max(largest for _, largest in found):.3g}). Choose float32 or bfloat16 as output dtype, "
            "or a lower scaling."
        )
