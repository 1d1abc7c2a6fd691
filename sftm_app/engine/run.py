"""Run a plan: a generator that yields one merged tensor after the other. It writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part, Role
from sftm_app.engine.fitting import Unfit, fit, refuse_unfit, unfit
from sftm_app.engine.layer import LayerWork, make_layer, merge_elements, merge_layer
from sftm_app.engine.placing import where_it_fits
from sftm_app.engine.records import NO_FIGURES, Figures, TensorRecord
from sftm_app.engine.task_matrices import open_readers, task_matrices_of
from sftm_app.engine.task_vectors import prepare_plan
from sftm_app.errors import MethodError, NumericalError, ResourceError
from sftm_app.linalg.failures import is_out_of_memory
from sftm_app.linalg.low_rank import Delta, add_to
from sftm_app.linalg.parallel import parallel_map
from sftm_app.planning.memory import SPAN
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.units import format_bytes
from sftm_app.weights.reader import TensorReader


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """One tensor of the output, on the CPU, with the shape and dtype of the plan.

    Attributes:
        entry: the plan's entry.
        tensor: the merged tensor.
        records: its lines of the report: one, or one for each of the entry's parts.
    """

    entry: PlanEntry
    tensor: Tensor
    records: tuple[TensorRecord, ...]


@dataclass(frozen=True, eq=False)
class MergedDelta:
    """What is added to one linear map inside a tensor, (m, n), or to the tensor in its own shape (no part)."""

    entry: PlanEntry
    part: Part | None
    delta: Delta
    record: TensorRecord


@dataclass(frozen=True, eq=False)
class _Run:
    """What every tensor of a run needs: the plan, the session, and open readers."""

    plan: Plan
    session: Session
    base: TensorReader
    tasks: Sequence[TensorReader]


def run(plan: Plan, session: Session) -> Iterator[MergedTensor]:
    """Merge every tensor of the plan, in its order.

    Raises:
        NumericalError: NaN or Inf in an input, or a result that does not fit the output's dtype.
        MethodError: the method failed, or broke its contract.
        ResourceError: out of memory; names the layer.
        CheckpointError: an input changed while in use.
    """
    with _open(plan, session) as running:
        for entry in plan.entries:
            with _naming(plan, entry):
                merged = where_it_fits(plan, entry, session.n_threads, partial(_merge_entry, running, entry))
            yield merged
            del merged  # so that it is not held while the next one is made


def run_deltas(plan: Plan, session: Session) -> Iterator[MergedDelta]:
    """What is added to every tensor of the plan, part by part, without adding it. Otherwise as `run`."""
    with _open(plan, session) as running:
        for entry in plan.entries:
            if entry.rule == "copy":
                continue
            for expert, parts in _by_expert(entry):
                with _naming(plan, entry):
                    merge = partial(_delta_parts, running, entry, expert, parts)
                    made = where_it_fits(plan, entry, session.n_threads, merge)
                yield from made
                del made


@contextmanager
def _open(plan: Plan, session: Session) -> Iterator[_Run]:
    plan = prepare_plan(plan, session)
    with open_readers(plan) as (base, tasks):
        yield _Run(plan, session, base, tasks)


@contextmanager
def _naming(plan: Plan, entry: PlanEntry) -> Iterator[None]:
    """Turn a lack of memory into a sentence, and name the tensor where an error does not."""
    try:
        yield
    except (NumericalError, MethodError) as error:
        if entry.name in str(error):
            raise
        raise type(error)(f"{entry.name!r}: {error}") from error.__cause__
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory at {entry.name!r}, which needs about {format_bytes(plan.peak_bytes)}. "
            "Choose a lower rank or fewer tasks, close other programs, or choose the device cpu."
        ) from None


def _merge_entry(running: _Run, entry: PlanEntry, device: torch.device) -> MergedTensor:
    started = time.perf_counter()
    if entry.rule == "copy":
        return MergedTensor(entry, _copied(running, entry), (_record(entry, None, started),))
    if 0 in entry.output.shape:
        empty = torch.empty(entry.output.shape, dtype=entry.output.dtype)
        return MergedTensor(entry, empty, (_record(entry, None, started),))
    if entry.in_pieces:
        return _merge_pieces(running, entry, device)
    records = []
    stack: Tensor | None = None
    for expert, parts in _by_expert(entry):
        origin = running.base.finite(entry.name, COMPUTE_DTYPE, expert).to(device)
        # Task matrices are read again while a part is merged, so its base must stay as it is until then.
        for merged in _merge_parts(running, entry, expert, parts, origin, device):
            add_to(merged.part.in_slice.of(origin) if merged.part else origin, merged.delta)
            records.append(merged.record)
            del merged
        result = fit(entry.name, origin, entry.output.dtype).cpu()
        if expert is None:
            return MergedTensor(entry, result, tuple(records))
        stack = torch.empty(entry.output.shape, dtype=entry.output.dtype) if stack is None else stack
        stack[expert] = result
    assert stack is not None
    return MergedTensor(entry, stack, tuple(records))


def _merge_pieces(running: _Run, entry: PlanEntry, device: torch.device) -> MergedTensor:
    started = time.perf_counter()
    plan, session = running.plan, running.session
    merged = torch.empty(entry.output.shape, dtype=entry.output.dtype)
    flat, present = merged.view(-1), plan.tasks_of(entry).present
    n = flat.numel()

    def merge(start: int) -> Unfit:
        span = (start, min(start + SPAN, n))
        origin = running.base.finite(entry.name, COMPUTE_DTYPE, span=span)
        matrices = task_matrices_of(entry, None, present, running.tasks, origin, device, span)
        work = LayerWork(plan, entry, None, device, session, origin)
        layer = make_layer(work, matrices, lambda: origin)
        add_to(origin, merge_elements(work, layer, span))
        flat[slice(*span)] = origin
        return unfit(origin, flat.dtype)

    refuse_unfit(entry.name, flat.dtype, parallel_map(merge, range(0, n, SPAN), session.n_threads))
    parts = entry.parts or (None,)
    figures = _where_and_who(running, entry, device, NO_FIGURES)
    records = [_record(entry, part, started, figures) for part in parts]
    shared = [replace(record, seconds=record.seconds / len(parts)) for record in records]
    return MergedTensor(entry, merged, tuple(shared))


def _delta_parts(
    running: _Run, entry: PlanEntry, expert: int | None, parts: Sequence[Part | None], device: torch.device
) -> list[MergedDelta]:
    origin = running.base.finite(entry.name, COMPUTE_DTYPE, expert).to(device) if entry.n_dense else None
    return list(_merge_parts(running, entry, expert, parts, origin, device))


def _by_expert(entry: PlanEntry) -> Iterator[tuple[int | None, tuple[Part | None, ...]]]:
    """The parts of a tensor, expert by expert where it is a stack; otherwise all of them under None."""
    for expert, parts in groupby(entry.parts or (None,), lambda part: part.expert if part else None):
        yield expert, tuple(parts)


def _merge_parts(
    running: _Run,
    entry: PlanEntry,
    expert: int | None,
    parts: Sequence[Part | None],
    origin: Tensor | None,
    device: torch.device,
) -> Iterator[MergedDelta]:
    """Merge each part by the entry's rule; `origin` is the base's tensor, or the one expert of the parts."""
    plan = running.plan
    present = plan.tasks_of(entry).present

    def read_base(part: Part | None) -> Tensor:
        """The base's weight of one part, in the shape of its task matrices."""
        stored = running.base.finite(entry.name, COMPUTE_DTYPE, expert).to(device) if origin is None else origin
        return part.in_slice.of(stored) if part else stored

    for part in parts:
        started = time.perf_counter()
        matrices = task_matrices_of(entry, part, present, running.tasks, origin, device)
        work = LayerWork(plan, entry, part, device, running.session, origin)
        try:
            merged = merge_layer(work, matrices, partial(read_base, part))
        except (NumericalError, MethodError) as error:
            raise type(error)(f"{_record(entry, part, started).name!r}: {error}") from error.__cause__
        figures = _where_and_who(running, entry, device, merged.figures)
        yield MergedDelta(entry, part, merged.delta, _record(entry, part, started, figures))
        del merged


def _where_and_who(running: _Run, entry: PlanEntry, device: torch.device, figures: Figures) -> Figures:
    """Add the device where it is not the plan's, and the tasks where not all of them hold the tensor."""
    plan = running.plan
    if entry.rule == "method" and not entry.elementwise and device.type != plan.device.type:
        figures = replace(figures, device=str(device))
    present = plan.tasks_of(entry).present
    if len(present) < len(plan.task_names):
        figures = replace(figures, tasks=tuple(plan.task_names[index] for index in present))
    return figures


def _copied(running: _Run, entry: PlanEntry) -> Tensor:
    if entry.role is Role.BUFFER:
        return running.base(entry.name)
    stored = running.plan.preflight.base.tensors[entry.name].dtype
    values = running.base.finite(entry.name, torch.float64 if stored == torch.float64 else COMPUTE_DTYPE)
    return fit(entry.name, values, entry.output.dtype)


def _record(entry: PlanEntry, part: Part | None, started: float, figures: Figures = NO_FIGURES) -> TensorRecord:
    shape = part.shape_in(entry.output.shape) if part and part.label else entry.output.shape
    name = part.name_in(entry.name) if part else entry.name
    return TensorRecord(name, entry.role.value, entry.rule, entry.why, shape, time.perf_counter() - started, figures)
