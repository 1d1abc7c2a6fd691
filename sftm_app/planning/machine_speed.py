"""How fast this machine is at what a merge does: measured with the merge's own functions, on small samples.

A linear map is sampled as it is where that is quick. Where it would take too long, the sample is smaller in both sides,
or has fewer tasks, and its time is scaled by the ratio of the operations that the two take: only that ratio comes from
formulas, so what the engine does and how well is in the measurement. Sampling stops where a more precise answer would
cost more than WORTH of the time that it is about, and after a second or two in all.

On the CPU every sample is computed by threads that each compute alone, and what several gain is asked of a product:
while other programs are at work, threads wait for each other at every step, which in small samples took ten times as
long as the steps themselves, and in large maps next to nothing.

What was measured is remembered in the process, and in a file for a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sftm_app.architecture.roles import Part, Role
from sftm_app.caching import write_text
from sftm_app.engine.run import computes_alone, merge_layer, threads_for
from sftm_app.engine.task_matrices import read_task_matrix
from sftm_app.linalg.factors import n_kept
from sftm_app.linalg.low_rank import Delta, LowRank, add_to
from sftm_app.linalg.parallel import single_threaded
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX
from sftm_app.linalg.svd import factorise
from sftm_app.methods.base import Layer, Merged, Method
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.weights.checkpoint import open_reader
from sftm_app.weights.writer import OutputTensor

REMEMBERED_S = 86_400.0
# To be raised when what is measured, or how, is another than before: what is remembered in files is no use then.
VERSION = 2
# A sample may take this long, and this share of the time that it stands for.
SAMPLE_S = 0.5
WORTH = 0.05
FIRST_SIDE = 96
# Iterations of the solver on tasks that share some features; only ratios depend on it.
ITERATIONS = 10
# What the many small steps take whatever the size, in operations: some milliseconds.
CALLS = 3e8
# Sides of the products that tell what several threads gain.
PRODUCT_SIDES = (64, 512)
READ_SAMPLE_BYTES = 32_000_000
WRITE_SAMPLE_BYTES = 16_000_000
HASH_SAMPLE_BYTES = 4_000_000
USUAL_READ = 1e9  # bytes a second, where nothing of a size that tells is there to be read


@dataclass(frozen=True)
class MapKind:
    """What the time of superposing one linear map (m, n) follows from: how many tasks have a dense change, and the
    ranks of those with a LoRA pair."""

    m: int
    n: int
    n_dense: int
    thin: tuple[int, ...] = ()

    @property
    def k(self) -> int:
        return min(self.m, self.n)

    @property
    def features(self) -> tuple[int, ...]:
        return (self.k,) * self.n_dense + tuple(min(rank, self.k) for rank in self.thin)

    def scaled(self, factor: float) -> MapKind:
        """The same with sides `factor` (at most 1) times as long."""
        m, n = (max(1, round(side * factor)) for side in (self.m, self.n))
        return MapKind(m, n, self.n_dense, self.thin)

    def with_tasks(self, count: int) -> MapKind:
        """The same with at most `count` tasks."""
        n_dense = min(count, self.n_dense)
        return MapKind(self.m, self.n, n_dense, self.thin[: count - n_dense])


@dataclass(frozen=True)
class MapSpeed:
    """Seconds of one linear map: of factorising all its tasks, and of everything else (as it is sampled on the CPU: by
    one thread). n_reads: how often each task's change is read for it."""

    factorise_s: float
    rest_s: float
    n_reads: float

    @property
    def seconds(self) -> float:
        return self.factorise_s + self.rest_s


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes a second: of an input as stored until it is a change, of writing until it is on the disk, of writing what
    nobody waits for, of SHA-256."""

    read: float
    write: float
    keep: float
    hash: float


@dataclass
class Memory:
    """What was measured before, by what it follows from; in `path` too where there is one. Entries older than a day are
    measured again."""

    path: Path | None = None
    values: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            read = json.loads(self.path.read_text("utf-8")) if self.path else {}
            self.values = {str(key): [float(number) for number in numbers] for key, numbers in read.items()}

    def recall(self, measure: Callable[[], Sequence[float]], *about: object) -> list[float]:
        """The numbers of an earlier `measure()` of the same, or those of one made now."""
        threads, now = torch.get_num_threads(), time.time()
        key = repr((VERSION, torch.__version__, threads, *about))
        known = self.values.get(key)
        if known is None or not 0 <= now - known[0] <= REMEMBERED_S:
            known = self.values[key] = [now, *measure()]
            self._save()
        return known[1:]

    def _save(self) -> None:
        if self.path is None:
            return
        fresh = {key: value for key, value in self.values.items() if time.time() - value[0] <= REMEMBERED_S}
        with contextlib.suppress(OSError):
            write_text(self.path, json.dumps(fresh))


def operations(kind: MapKind, params: Any, solved: bool = False) -> float:
    """Operations of superposing and measuring one linear map whose factors are there, in units of those of large
    products: slower ones count for more. Only ratios are used, between maps that are alike. solved: without forming and
    solving the system."""
    m, n, whole = kind.m, kind.n, kind.features
    kept = [min(r, n_kept(params.rank, m, n)) for r in whole]
    R = sum(kept)
    work = CALLS
    if not solved:
        work += (R**2 - sum(r * r for r in kept)) * (m + n)
        work += 18.0 * R**3 if R <= AUTO_DIRECT_MAX else 20.0 * ITERATIONS * R**2
    if params.variant == "mapping":
        work += 2.0 * n * n * R + 2.0 * n * min(n, R) * R
    if kind.k <= R:
        # D* and the plain sum, and what a task reads of both where it does not read everything.
        work += 4.0 * m * n * (R + sum(r for r in kept if r < n))
    else:
        work += (4.0 * m + 2.0 * n) * R**2 + 2.0 * m * n * R
    # Features that are computed but not kept are looked at one task after the other.
    return work + (8.0 * m * n * sum(whole) if isinstance(params.rank, str) else 0.0) + m * n


def map_speed(
    memory: Memory, method: Method, params: Any, kind: MapKind, device: torch.device, count: int = 1
) -> MapSpeed:
    """How long one linear map of this kind takes; count: how many there are, which decides how precise to be."""

    sampled = _near(params, kind)

    def measure() -> tuple[float, float, float]:
        return astuple(_map_speed(kind, method, sampled, device, count))

    about = (method.name, getattr(params, "variant", ""), sampled.rank, kind, str(device), count)
    speed = MapSpeed(*memory.recall(measure, *about))
    rest_s = speed.rest_s * operations(kind, params) / operations(kind, sampled)
    alone = device.type == "cpu" and not computes_alone(kind.m, kind.n, kind.thin, kind.n_dense)
    return replace(speed, rest_s=rest_s / _gain_of_threads(memory, kind.k) if alone else rest_s)


def _gain_of_threads(memory: Memory, side: int) -> float:
    """How many times as fast torch's threads multiply square matrices of about this side as one does; 1 or more."""
    low, high = PRODUCT_SIDES
    side = min(max(2 ** round(math.log2(side)), low), high)
    matrix = torch.rand(side, side, generator=torch.Generator().manual_seed(0))

    def measure() -> tuple[float]:
        def quickest() -> float:
            return min(_seconds(lambda: matrix @ matrix) for _ in range(5))

        with single_threaded():
            alone = quickest()
        return (max(1.0, alone / quickest()),)

    return memory.recall(measure, "threads", side)[0] if torch.get_num_threads() > 1 else 1.0


def _near(params: Any, kind: MapKind) -> Any:
    """The params with the nearest of a few ranks: a slider that is moved asks for many."""
    if params.rank is None or isinstance(params.rank, str):
        return params
    share = 2.0 ** round(math.log2(n_kept(params.rank, kind.m, kind.n) / kind.k))
    return replace(params, rank=share if share < 1 else None)


def features_s(memory: Memory, kind: MapKind, count: int) -> float:
    """Seconds of factorising one merged dense change once more, on the CPU in float64, as an adapter needs it."""

    def measure() -> tuple[float]:
        factor, earlier = min(1.0, FIRST_SIDE / kind.k), (0.0, 0.0)
        while True:
            small = kind.scaled(factor)
            D = torch.randn(small.m, small.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            seconds = min(_seconds(partial(factorise, D)) for _ in range(2))
            expected = _extrapolated(earlier, (factor, seconds))
            following = min(1.0, 2 * factor)
            if factor == 1.0 or seconds * (following / factor) ** 3 > min(SAMPLE_S, WORTH * count * expected):
                return (expected,)
            earlier, factor = (factor, seconds), following

    return memory.recall(measure, "features", kind.m, kind.n, count)[0]


def _map_speed(kind: MapKind, method: Method, params: Any, device: torch.device, count: int) -> MapSpeed:
    # So many tasks are factorised at a time; with one alone there would be nothing to solve.
    tasks = min(max(2, torch.get_num_threads()), len(kind.features))
    factor, earlier = min(1.0, FIRST_SIDE / kind.k), (0.0, 0.0)
    whole = operations(kind, params)
    # What a process does for the first time takes longer, and so little work would seem to take hours of all.
    _sample(kind.with_tasks(tasks).scaled(factor), method, params, device)
    while True:
        small = kind.with_tasks(tasks).scaled(factor)
        sample = _sample(small, method, params, device)
        done, more_tasks = operations(small, params), len(kind.features) / tasks
        # Larger matrices are factorised at a higher rate: what grows with the square of a side gets less important.
        factorise_s = _extrapolated(earlier, (factor, sample.factorise_s)) * more_tasks
        expected = MapSpeed(factorise_s, sample.rest_s * whole / done, sample.n_reads)
        # As large as it is first, then as many tasks.
        following = min(1.0, 2 * factor), min(2 * tasks, len(kind.features)) if factor == 1.0 else tasks
        larger = operations(kind.with_tasks(following[1]).scaled(following[0]), params)
        factorised = sample.factorise_s * (following[0] / factor) ** 3 * following[1] / tasks
        longer = factorised + sample.rest_s * larger / done
        if following == (factor, tasks) or longer > min(SAMPLE_S, WORTH * count * expected.seconds):
            return expected
        earlier = (factor, sample.factorise_s) if following[1] == tasks else (0.0, 0.0)
        factor, tasks = following


def _extrapolated(earlier: tuple[float, float], last: tuple[float, float]) -> float:
    """Seconds at factor 1 of a c^3 + b c^2 through two samples (factor c, seconds), kept near the last one's rate."""
    (c0, t0), (c1, t1) = earlier, last
    rate = t1 / c1**3
    if not c0:
        return rate
    a = (t1 / c1**2 - t0 / c0**2) / (c1 - c0)
    a = min(max(a, rate / 2), rate)
    return a + (t1 - a * c1**3) / c1**2


class _Counted(Sequence[Delta]):
    """Changes, and how often one was asked for."""

    def __init__(self, changes: Sequence[Delta]) -> None:
        self.changes, self.n_asked = changes, 0

    def __len__(self) -> int:
        return len(self.changes)

    def __getitem__(self, index: int) -> Delta:  # type: ignore[override]
        self.n_asked += 1
        return self.changes[index]


def _sample(kind: MapKind, method: Method, params: Any, device: torch.device) -> MapSpeed:
    """What merging made-up tasks takes, by the functions that a run calls; the best of a few quick ones."""
    changes = _Counted(_made_up(kind, device))
    target = torch.zeros(kind.m, kind.n, device=device)
    times: list[tuple[float, float]] = []

    def timed(layer: Layer, given: Any) -> Merged:
        started = time.perf_counter()
        features = layer.features(given.rank)
        _wait(device)
        factorised = time.perf_counter()
        with single_threaded() if device.type == "cpu" else nullcontext():
            merged = method.merge_matrix(replace(layer, leading=lambda rank: features), given)
            add_to(target, merged.delta)
        _wait(device)
        times.append((factorised - started, time.perf_counter() - factorised))
        return merged

    output = OutputTensor("sample", COMPUTE_DTYPE, (kind.m, kind.n))
    entry = PlanEntry(output, Role.MATRIX, method.matrix_rule, "", ("sample",) * len(changes), (Part(),))
    while len(times) < 3 or (sum(map(sum, times)) < 0.05 and len(times) < 8):
        with threads_for(kind.m, kind.n, kind.thin, kind.n_dense):
            merge_layer(replace(method, merge_matrix=timed), params, entry, changes, [1.0] * len(changes))
        if sum(times[0]) > SAMPLE_S / 4:
            break
    # Other programs only ever slow down.
    best = [min(each) for each in zip(*times, strict=True)]
    return MapSpeed(best[0], best[1], changes.n_asked / len(times) / len(changes))


def _made_up(kind: MapKind, device: torch.device) -> list[Delta]:
    """Changes with decaying gains and orthonormal directions, or factorising and solving were too easy or too hard; but
    for their order in space, which makes as good as independent ones of them, the directions are all tasks' own."""
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(side, kind.k, generator=generator)).Q for side in (kind.m, kind.n))
    changes: list[Delta] = []
    for index, r in enumerate(kind.features):
        left = U[:, :r].roll(index, 0) * torch.logspace(0, -1.5, r)
        thin = LowRank(left.to(device), V[:, :r].roll(index, 0).T.contiguous().to(device))
        changes.append(thin if index >= kind.n_dense else thin.left @ thin.right)
    return changes


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disk_speed(memory: Memory, plan: Plan, scratch: Path | None) -> DiskSpeed:
    """Speeds of the plan's inputs as they lie there now, and of writing into the folder `scratch` (None: the system's
    for temporary files)."""
    write, keep, digest = memory.recall(lambda: _write_speeds(scratch), "write", str(scratch))
    return DiskSpeed(_read_speed(plan), write, keep, digest)


def _write_speeds(scratch: Path | None) -> tuple[float, float, float]:
    data = torch.rand(WRITE_SAMPLE_BYTES // 4).numpy().data
    try:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Other programs only ever slow down.
        kept_s, written_s = map(min, zip(*(_write_s(data, scratch) for _ in range(3)), strict=True))
    except OSError:  # nowhere to try: as fast as a plain disk
        kept_s = written_s = WRITE_SAMPLE_BYTES / 2e8
    sample = bytes(HASH_SAMPLE_BYTES)
    hashed_s = min(_seconds(lambda: hashlib.sha256(sample).digest()) for _ in range(3))
    return WRITE_SAMPLE_BYTES / written_s, WRITE_SAMPLE_BYTES / kept_s, HASH_SAMPLE_BYTES / hashed_s


def _write_s(data: memoryview, scratch: Path | None) -> tuple[float, float]:
    """Seconds until a new file is written, and until it is on the disk."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        started = time.perf_counter()
        file.write(data)
        file.flush()
        kept_s = time.perf_counter() - started
        os.fsync(file.fileno())
        return kept_s, time.perf_counter() - started


def _read_speed(plan: Plan) -> float:
    """Stored bytes a second, from the file to a change: of one tensor of each task, of a size that tells."""
    found = plan.preflight
    target = READ_SAMPLE_BYTES / (2 * len(found.tasks))
    n_bytes, seconds = 0, 0.0
    for index, task in enumerate(found.tasks):
        sources = [
            (entry.name, source)
            for entry in plan.entries
            if isinstance(source := entry.sources[index], str)
            and entry.rule != "copy"
            and entry.output.n_bytes
            and not (entry.parts and entry.parts[0].expert is not None)
        ]
        sizes = {name: found.base.tensors[name].n_bytes for name, _ in sources}
        for name, source in sorted(sources, key=lambda each: abs(math.log(sizes[each[0]] / target)))[:1]:
            with open_reader(found.base) as base, open_reader(task.checkpoint) as read, single_threaded():
                started = time.perf_counter()
                read_task_matrix(read, source, base.finite(name, COMPUTE_DTYPE), plan.device)
                _wait(plan.device)
                seconds += time.perf_counter() - started
            n_bytes += sizes[name] + task.checkpoint.tensors[source].n_bytes
    return n_bytes / max(seconds, 1e-6) if n_bytes else USUAL_READ
