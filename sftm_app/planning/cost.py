"""What a merge will take, before it runs: seconds, memory and disk, tensor by tensor and in all.

Memory and disk follow from shapes, see merging.memory. Seconds come from samples of the engine on this machine, see
merging.calibration: reading by the inputs themselves, factorising, superposing and measuring by maps like the plan's,
writing and hashing by their rates. Whether factors are kept from an earlier merge is asked for one layer of every task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sftm_app.engine.cache import SPEEDS_NAME, FactorStore, is_large, layer_key, open_store
from sftm_app.engine.features import see_each, worth_keeping
from sftm_app.engine.run import about_merge, made_as, weighted_by
from sftm_app.engine.task_matrices import EntryTasks, open_readers, task_matrices_of
from sftm_app.linalg.factors import n_kept
from sftm_app.linalg.parallel import n_processors
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, is_answered_by_tasks
from sftm_app.planning.budget import budget_note
from sftm_app.planning.machine_speed import (
    DiskSpeed,
    MapKind,
    MapSpeed,
    Memory,
    disk_speed,
    features_s,
    map_speed,
    operations,
)
from sftm_app.planning.memory import entry_bytes, kept_bytes, run_bytes
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.units import format_bytes, format_duration
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.hashing import hashing_threads
from sftm_app.weights.header import FileStamp

# Of every tensor, whatever its size: files are looked at, progress and memory are noted.
ENTRY_S = 0.002
# A layer that is kept is read, checked, scaled and added, and the sum is looked at: as long as reading it so often.
KEPT_PASSES = 3
# Kinds of maps that are sampled: those that take most. The others follow from them by their operations.
SAMPLED_KINDS = 3


@dataclass(frozen=True)
class EntryCost:
    """One tensor of the output: seconds, memory at the worst moment, bytes read and written."""

    name: str
    seconds: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Cost:
    """All tensors in the plan's order, and what comes on top: seconds for hashing the inputs for the report, which goes
    on meanwhile, on processors that have nothing else to do or take turns.

    budget: a sentence on the memory that may be taken or is free, where there is something to say.
    """

    entries: tuple[EntryCost, ...]
    hashing_s: float
    peak_bytes: int
    written_bytes: int
    budget: str | None = None

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in self.entries) + self.hashing_s

    @property
    def read_bytes(self) -> int:
        return sum(entry.read_bytes for entry in self.entries)

    def sentences(self) -> list[str]:
        """The whole cost in words, and what takes longest where that is worth knowing."""
        whole = (
            f"A merge takes {format_duration(self.seconds)} and {format_bytes(self.peak_bytes)} of memory (besides Python and "
            f"torch, which start in some seconds and take about 0.3 GB), reads {format_bytes(self.read_bytes)} and "
            f"writes {format_bytes(self.written_bytes)}."
        )
        longest = [f"{entry.name} ({entry.seconds:.1f} s)" for entry in self.costliest(3) if entry.seconds >= 1]
        budget = [self.budget] if self.budget else []
        return [whole, *budget, *([f"Longest: {', '.join(longest)}."] if longest else [])]

    def costliest(self, count: int = 10) -> tuple[EntryCost, ...]:
        """The tensors that take longest, longest first."""
        return tuple(sorted(self.entries, key=lambda entry: -entry.seconds)[:count])


def estimate(plan: Plan, memory: Memory | None = None) -> Cost:
    """What this plan will take. Measures for a second or two at most, less where a merge takes little, and nothing that
    was measured within a day. Reads a few megabytes of the inputs."""
    store = open_store()
    memory = memory or _memory(store.folder / SPEEDS_NAME if store else None)
    disk = disk_speed(memory, plan, store.folder if store else None)
    speeds = _map_speeds(plan, memory)
    kept = _what_is_kept(plan, store) if store else None
    adapter = plan.recipe.output.kind == "adapter"
    entries = []
    for entry in plan.entries:
        seconds, read = _seconds(plan, entry, speeds, disk, kept)
        seconds += ENTRY_S
        if adapter and entry.parts and entry.rule != "copy":
            seconds += sum(_features_s(plan, entry, kind, memory) for kind in _kinds(entry))
        written = entry.adapter_bytes(plan.recipe.output.rank) if adapter else entry.output.n_bytes
        if kept and kept.whole and kept.seen and not adapter and _may_be_kept(entry):
            used = kept_bytes(entry, plan.preflight, plan.recipe.params.rank)
        else:
            used = entry_bytes(entry, plan.preflight, plan.recipe.params, adapter, plan.device)
        entries.append(EntryCost(entry.name, seconds + written / disk.write, used, read, written))
    processors, hashing_s = n_processors(), _bytes_to_hash(plan, store) / disk.hash
    idle = processors - torch.get_num_threads()
    at_once = min(idle, hashing_threads())
    waiting = hashing_s / processors if idle <= 0 else hashing_s / at_once - sum(entry.seconds for entry in entries)
    peak = run_bytes([entry.memory_bytes for entry in entries], plan.entries, plan.preflight, plan.recipe.output)
    return Cost(tuple(entries), max(0.0, waiting), peak, plan.output_bytes, budget_note(plan))


def _may_be_kept(entry: PlanEntry) -> bool:
    """Whether what is superposed of this tensor is kept as a whole."""
    return entry.rule == "superpose" and not entry.pairs and all(worth_keeping(entry, part) for part in entry.parts)


def _bytes_to_hash(plan: Plan, store: FactorStore | None) -> int:
    """The sizes of the inputs' files, but of those whose hash is kept."""
    stamps = [item for checkpoint in plan.preflight.checkpoints for item in checkpoint.stamps.items()]

    def is_kept(path: Path, stamp: FileStamp) -> bool:
        return store is not None and store.recalls(f"SHA-256 of {path.resolve()} {stamp}")

    return sum(stamp.size_bytes for path, stamp in stamps if not is_kept(path, stamp))


@lru_cache(maxsize=8)
def _memory(path: Path | None) -> Memory:
    return Memory(path)


def _kinds(entry: PlanEntry) -> Iterator[MapKind]:
    thin = tuple(sorted(pair.rank for pair in entry.pairs))
    for part in entry.parts:
        yield MapKind(*part.shape_in(entry.output.shape), entry.n_dense, thin)


@dataclass(frozen=True)
class _Kept:
    """The share of tasks whose factors are kept, whether all but the scaling is, whether that is known without a look
    at the tasks' matrices, which are read and hashed for it, and whether the system was solved for all weights."""

    share: float
    whole: bool = False
    seen: bool = False
    solved: bool = False


def _what_is_kept(plan: Plan, store: FactorStore) -> _Kept:
    """What is kept of the smallest layer whose factors would be."""
    rank = getattr(plan.recipe.params, "rank", None)
    layers = [
        entry
        for entry in plan.entries
        if entry.rule == "superpose" and entry.parts[0].expert is None and worth_keeping(entry, entry.parts[0])
    ]
    if not layers:
        return _Kept(0.0)
    entry = min(layers, key=lambda each: each.output.n_elements)
    taking = EntryTasks(plan, entry)
    with open_readers(plan) as (base, tasks):
        origin = base.finite(entry.name, COMPUTE_DTYPE)
        changes = task_matrices_of(plan, entry, entry.parts[0], taking.present, tasks, origin, origin.device)
        seen = see_each(changes, store, keep=False)
    found = [store.find(replace(one.key, count=n_kept(rank, *one.key.shape))) for one in seen if one]
    factors = [factors.cut(rank) for factors in found if factors]
    recalled = all(one.recalled for one in seen if one)

    def holds(by: object) -> bool:
        about = about_merge(plan.method, plan.recipe.params, by, plan.device)
        return store.holds_layer(layer_key([one.key.digest if one else None for one in seen], about))

    solved = len(set(taking.weights)) > 1 and len(factors) == len(seen) and holds(made_as(factors))
    share = len(factors) / max(len(found), 1)
    return _Kept(share, holds(weighted_by(taking.weights, taking.idle_weight)), recalled, solved)


def _map_speeds(plan: Plan, memory: Memory) -> dict[MapKind, MapSpeed]:
    """The speed of every kind of linear map that is superposed."""
    params = plan.recipe.params
    counts = Counter(kind for entry in plan.entries if entry.rule == "superpose" for kind in _kinds(entry) if kind.k)
    work = {kind: operations(kind, params) + 20 * _cubes(kind) for kind in counts}
    most = sorted(counts, key=lambda kind: -counts[kind] * work[kind])
    speeds = {
        kind: map_speed(memory, plan.method, params, kind, plan.device, counts[kind]) for kind in most[:SAMPLED_KINDS]
    }
    for kind in most[SAMPLED_KINDS:]:
        like = next((k for k in speeds if bool(k.n_dense) == bool(kind.n_dense)), most[0])
        rest = operations(kind, params) / max(operations(like, params), 1.0)
        factorising = _cubes(kind) / _cubes(like) if like.n_dense else rest
        known = speeds[like]
        speeds[kind] = MapSpeed(known.factorise_s * factorising, known.rest_s * rest, known.n_reads)
    return speeds


def _cubes(kind: MapKind) -> float:
    """The operations of factorising dense changes, up to a factor of about twenty."""
    return float(kind.n_dense * kind.m * kind.n * kind.k)


def _seconds(
    plan: Plan, entry: PlanEntry, speeds: dict[MapKind, MapSpeed], disk: DiskSpeed, kept: _Kept | None
) -> tuple[float, int]:
    """Seconds of one tensor without writing it, and the bytes that are read for it. kept: None where there is no cache."""
    base = plan.preflight.base.tensors[entry.name].n_bytes
    if entry.rule == "copy":
        return base / disk.read, base
    dense = pairs = 0
    for task, source in zip(plan.preflight.tasks, entry.sources, strict=True):
        tensors = task.checkpoint.tensors
        if isinstance(source, LoraPair):
            pairs += sum(tensors[name].n_bytes for name in (source.a, source.b))
        elif source is not None:
            dense += tensors[source].n_bytes
    if entry.rule != "superpose":
        return (base + dense + pairs) / disk.read, base + dense + pairs
    kinds = [kind for kind in _kinds(entry) if kind.k]
    if not kinds:
        return 0.0, 0
    seconds, times = 0.0, 0.0
    for kind in kinds:
        speed = speeds[kind]
        if kept is None or not kind.n_dense or not is_large((kind.m, kind.n)):
            seconds += speed.seconds
            times = max(times, speed.n_reads)
            continue
        looks = 0 if kept.seen else 1
        layer = COMPUTE_DTYPE.itemsize * kind.m * kind.n
        looking = looks * kind.n_dense * layer / disk.hash
        times = max(times, looks)
        if kept.whole and not kind.thin:
            seconds += looking + KEPT_PASSES * layer / disk.read
            continue
        count = n_kept(plan.recipe.params.rank, kind.m, kind.n)
        factors = COMPUTE_DTYPE.itemsize * kind.n_dense * (kind.m + kind.n) * count
        params = plan.recipe.params
        by_tasks = kept.solved and _by_tasks(kind, params)
        solving = operations(kind, params, solved=True) / operations(kind, params) if by_tasks else 1.0
        seconds += speed.rest_s * solving + looking + layer / disk.keep
        making = speed.factorise_s + factors / disk.keep
        seconds += (1 - kept.share) * making + kept.share * factors / disk.read
        times = max(times, looks + (1 - kept.share) * speed.n_reads)
    # Each part reads the whole tensor, except where it is one expert of a stack.
    split = 1 if entry.parts[0].expert is not None else len(kinds)
    read = base + round((dense * times + pairs * max(times, 1.0)) * split)
    return seconds + read / disk.read, read


def _by_tasks(kind: MapKind, params: Any) -> bool:
    """Whether what each task asks for is answered by itself, where weights differ."""
    n_features = sum(min(r, n_kept(params.rank, kind.m, kind.n)) for r in kind.features)
    stored = is_answered_by_tasks(kind.m, kind.n, n_features, len(kind.features))
    return params.variant == "readout" and n_features > AUTO_DIRECT_MAX and stored


def _features_s(plan: Plan, entry: PlanEntry, kind: MapKind, memory: Memory) -> float:
    dense = kind.n_dense or (entry.rule == "superpose" and sum(kind.features) >= kind.k)
    if not kind.k or not dense:
        return 0.0
    count = sum(other.output.shape == entry.output.shape for other in plan.entries)
    return features_s(memory, kind, count)
