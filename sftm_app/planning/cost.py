"""What a merge takes: seconds, memory and disk, tensor by tensor and in all.

Memory and disk follow from shapes (`planning.memory`). Seconds are operations over the measured speed of this machine
(`machine_speed`), plus bytes read and written over usual speeds of disks. They are right within a factor of two. A
tensor counts as cached only where every part of it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.linalg.calibration import calibrate_operations, factorised_size
from sftm_app.linalg.factors import Rank
from sftm_app.linalg.gram_svd import GRAM_MIN
from sftm_app.linalg.operations import SMALL_SVD, THIN_SVD
from sftm_app.linalg.parallel import n_processors
from sftm_app.linalg.workspace import LayerSize
from sftm_app.machine_speed import MachineSpeed
from sftm_app.planning.budget import budget_note
from sftm_app.planning.keys import factor_key, is_cached, matrix_key
from sftm_app.planning.memory import (
    MemoryModel,
    adapter_delta,
    cached_bytes,
    delta_rank,
    delta_size,
    entry_bytes,
    layer_sizes,
    run_bytes,
)
from sftm_app.planning.plan import Cost, EntryCost, Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.disk_cache import hash_key
from sftm_app.weights.hashing import hashing_threads

# Bytes a second: reading and converting a tensor and subtracting another; writing until the bytes are on the disk.
READING, WRITING = 1e9, 4e8
# Per tensor, whatever its size: progress, memory, the output file.
ENTRY_S = 0.001
# Per task of a linear map: the many small steps of factorising, solving and measuring.
STEPS_S = 0.001
# A cached layer is read, checked, scaled and added.
CACHED_PASSES = 3


@dataclass(frozen=True)
class _Machine:
    """What the seconds depend on. n_threads: of torch."""

    speed: MachineSpeed
    n_threads: int

    @property
    def products(self) -> float:
        """Operations a second of products, by all threads."""
        return self.speed.products * self.n_threads


def estimate(plan: Plan, model: MemoryModel, session: Session) -> Cost:
    """What a plan takes. Reads no weights.

    Args:
        plan: a plan, whose `cost` is not used.
        model: what its memory depends on.
        session: its cache says what is computed already, its speed how fast the rest goes.
    """
    machine = _Machine(session.speed.get(), session.n_threads)
    entries = []
    for entry in plan.entries:
        cached = is_cached(plan, entry, session.cache, plan.device) and not plan.writes_adapter
        seconds, read = _cached(plan, entry) if cached else _computed(plan, entry, session, machine)
        seconds += _calibrating_s(plan, entry, model, machine) if entry.calibrated and not cached else 0.0
        seconds += _factorising_again_s(entry, model, machine) if plan.writes_adapter else 0.0
        written = entry.adapter_bytes(plan.recipe.output.rank) if plan.writes_adapter else entry.output.n_bytes
        used = cached_bytes(entry, model) if cached else entry_bytes(entry, model)
        entries.append(EntryCost(entry.name, ENTRY_S + seconds + written / WRITING, used, read, written))
    merging_s = sum(entry.seconds for entry in entries)
    peak = run_bytes([entry.memory_bytes for entry in entries], plan.entries, model)
    note = budget_note(plan.entries, model, peak, plan.memory_bytes)
    return Cost(tuple(entries), _hashing_s(plan, session, machine, merging_s), peak, plan.output_bytes, note)


def _hashing_s(plan: Plan, session: Session, machine: _Machine, merging_s: float) -> float:
    """Seconds that hashing the inputs adds. Idle processors hash while the others merge; without any, hashing waits."""
    cache = session.cache
    n_bytes = sum(
        stamp.size_bytes
        for checkpoint in plan.preflight.checkpoints
        for path, stamp in checkpoint.stamps.items()
        if cache is None or not cache.holds(hash_key(path, stamp))
    )
    seconds, idle = n_bytes / machine.speed.hashing, n_processors() - machine.n_threads
    if idle <= 0:
        return seconds / n_processors()
    return max(0.0, seconds / min(idle, hashing_threads()) - merging_s)


def _cached(plan: Plan, entry: PlanEntry) -> tuple[float, int]:
    """Seconds and bytes read of an entry whose layers are all cached."""
    base = plan.preflight.base.tensors[entry.name].n_bytes
    delta = sum(size.matrix_bytes for size in layer_sizes(entry))
    return (base + CACHED_PASSES * delta) / READING, base


def _computed(plan: Plan, entry: PlanEntry, session: Session, machine: _Machine) -> tuple[float, int]:
    """Seconds and bytes read of an entry that is merged."""
    base = plan.preflight.base.tensors[entry.name].n_bytes
    if entry.rule == "copy":
        return base / READING, base
    read = base + _task_bytes(plan, entry)
    seconds = read / READING
    sizes = layer_sizes(entry)
    if entry.rule == "method":
        seconds += sum(plan.method.operations(size, plan.recipe.params) for size in sizes) / machine.products
    rank = plan.method.features(plan.recipe.params) if plan.method.features else None
    if (entry.rule == "method" and plan.method.features) or entry.measured:
        share = _share_to_factorise(plan, entry, rank, session)
        seconds += share * sum(_factorising_s(size, rank, machine) for size in sizes)
        # Factors are read from the cache or written to it.
        seconds += sum(size.factor_bytes for size in sizes) / READING if session.cache else 0.0
    if entry.measured:
        seconds += sum(_measuring_operations(size, rank) for size in sizes) / machine.products
    if not entry.in_pieces:
        seconds += STEPS_S * sum(len(size.features) for size in sizes)
    return seconds, read


def _task_bytes(plan: Plan, entry: PlanEntry) -> int:
    total = 0
    for task, source in zip(plan.preflight.tasks, entry.sources, strict=True):
        tensors = task.checkpoint.tensors
        if isinstance(source, LoraPair):
            total += sum(tensors[name].n_bytes for one in source.each for name in (one.a, one.b))
        elif source is not None:
            total += tensors[source].n_bytes
    # Each part reads the whole tensor, except where it is one expert of a stack.
    return total * (len(entry.parts) if entry.parts and not entry.in_experts else 1)


def _share_to_factorise(plan: Plan, entry: PlanEntry, rank: Rank, session: Session) -> float:
    """The share of an entry's task matrices whose factors, up to a rank, are not cached."""
    cache = session.cache
    if cache is None:
        return 1.0
    present = plan.tasks_of(entry).present
    keys = [
        factor_key(matrix_key(plan.preflight, entry.name, part, index), part.shape_in(entry.output.shape), rank)
        for part in entry.parts
        for index in present
    ]
    return sum(not cache.holds_factors(key) for key in keys) / max(len(keys), 1)


def _factorising_s(size: LayerSize, rank: Rank, machine: _Machine) -> float:
    """Seconds of factorising all tasks of a linear map, side by side on torch's threads."""
    products, eigen = 0.0, 0.0
    for count, thin in zip(size.computed(rank), size.thin, strict=True):
        if thin:
            products += THIN_SVD * (size.m + size.n) * count**2
        elif size.k < GRAM_MIN:
            products += SMALL_SVD * size.m * size.n * size.k
        else:
            # Half of the Gram matrix in float64, at half the speed; the products with the directions kept.
            products += 2.0 * size.m * size.n * size.k + 2.0 * size.m * size.n * count
            eigen += size.k**3
    at_once = min(machine.n_threads, len(size.features)) or 1
    return products / machine.products + eigen / machine.speed.eigen / at_once


def _calibrating_s(plan: Plan, entry: PlanEntry, model: MemoryModel, machine: _Machine) -> float:
    """Seconds of calibrating an entry's delta: it is factorised, and every task is read again."""
    seconds = _task_bytes(plan, entry) / READING
    for size in layer_sizes(entry):
        delta, rank = delta_size(size, entry, model), delta_rank(size, entry, model)
        seconds += _factorising_s(factorised_size(size, delta, rank), None, machine)
        seconds += calibrate_operations(size, delta, rank) / machine.products
    return seconds


def _factorising_again_s(entry: PlanEntry, model: MemoryModel, machine: _Machine) -> float:
    """Seconds of factorising an entry's delta for an adapter, in float64: half as fast as in float32."""
    delta = adapter_delta(entry, model)
    if delta is None:
        return 0.0
    m, n, rank = delta.m, delta.n, delta.rank
    operations = SMALL_SVD * m * n * min(m, n) if rank is None else THIN_SVD * (m + n) * rank**2
    return 2 * operations / machine.products


def _measuring_operations(size: LayerSize, rank: Rank) -> float:
    """Forming the plain average, and reading it and the delta along every task's directions."""
    return 6.0 * size.m * size.n * sum(size.computed(rank))
