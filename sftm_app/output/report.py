"""What exactly was merged: inputs with their hashes, every tensor's rule and figures, what it took."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch

from sftm_app import __version__
from sftm_app.engine.cache import FactorStore, open_store
from sftm_app.engine.records import TensorRecord
from sftm_app.errors import CheckpointError
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import recipe_to_dict
from sftm_app.units import format_bytes, format_duration
from sftm_app.weights.checkpoint import Checkpoint, read_json
from sftm_app.weights.hashing import HashCache, hash_files, hashing_threads, refuse_changed
from sftm_app.weights.hub_names import hub_name

REPORT_NAME = "sftm_report.json"
# A merge method's word for a solve that was not finished; see linalg.superposition.
STOPPED_EARLY = "iterative (stopped early)"
# Relative. A finished solve is at 1e-5 or less, directions dropped as shared cost 1e-3: beyond 1e-2 something was lost.
LARGE_RESIDUAL = 1e-2


@dataclass(frozen=True)
class InputRecord:
    """An input: its folder, each weight file's SHA-256, and for one from the hub its "org/name@commit"."""

    name: str
    path: str
    weight: float | None
    sha256: dict[str, str]
    hub: str | None = None


@dataclass(frozen=True)
class Report:
    """The whole run: `seconds` of wall time, `output_bytes` of tensors.

    machine: where it ran, the memory that the plan expected (`memory_predicted_bytes`) and what the run took at most
    above what the process held before (`memory_peak_bytes`); the seconds that were expected (`seconds_predicted`, None
    where nobody estimated them, and `tensor_seconds_predicted` of the tensors that take longest), those of all tensors
    (`tensor_seconds`) and those of waiting for the hashes of the inputs (`hashing_seconds`, in `seconds` too).
    executor, workers: who merged, and how many processes took part; `memory_peak_bytes` is that of the one that took
    most.
    """

    version: str
    created: str
    method: str
    recipe: dict[str, Any]
    inputs: tuple[InputRecord, ...]
    tensors: tuple[TensorRecord, ...]
    heads: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    machine: dict[str, Any]
    seconds: float
    output_bytes: int

    @property
    def readout_errors(self) -> dict[str, float]:
        """Median readout error over the superposed layers, by task; empty when nothing was superposed."""
        return self.medians("readout_errors")

    @property
    def mapping_errors(self) -> dict[str, float]:
        """Median mapping error over the superposed layers, by task; empty when nothing was superposed."""
        return self.medians("mapping_errors")

    def medians(self, figure: str) -> dict[str, float]:
        """Median over the layers of a figure that has one number per task; empty when no layer has it."""
        rows = [record.figures[figure] for record in self.tensors if figure in record.figures]
        # A layer that some task lacks has fewer columns and says nothing about which; it stays out of the medians.
        names = [entry.name for entry in self.inputs[1:]]
        whole = [row for row in rows if len(row) == len(names)]
        return {name: statistics.median(row[i] for row in whole) for i, name in enumerate(names)} if whole else {}

    @property
    def memory(self) -> str:
        """What the run took and what was expected: "312 MB of memory (300 MB expected) besides Python and torch"."""
        took, expected = self.machine["memory_peak_bytes"], self.machine["memory_predicted_bytes"]
        return f"{format_bytes(took)} of memory ({format_bytes(expected)} expected) besides Python and torch"

    @property
    def time(self) -> str:
        """What the run took and what the plan expected: "41.2 s (about 40 s expected)"."""
        expected = self.machine.get("seconds_predicted")
        return f"{self.seconds:.1f} s" + (f" ({format_duration(expected)} expected)" if expected is not None else "")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)


def load_report(path: Path) -> Report:
    """Read a report back.

    Raises
        CheckpointError: it cannot be read, or was written by another version.
    """
    value = read_json(path)
    try:
        inputs = tuple(InputRecord(**entry) for entry in value.pop("inputs"))
        return Report(inputs=inputs, tensors=tuple(TensorRecord(**entry) for entry in value.pop("tensors")), **value)
    except (KeyError, TypeError):
        raise CheckpointError(f"{path}: is not a report of this version of SFTM Studio. Merge again.") from None


def _cached_hash(store: FactorStore) -> HashCache:
    return lambda path, stamp, compute: str(store.recall(f"SHA-256 of {path.resolve()} {stamp}", compute))


@contextmanager
def hashing(plan: Plan) -> Iterator[Callable[[], list[InputRecord]]]:
    """Read every input for its hash while something else goes on. What is yielded waits for the last of them.

    A file whose hash is kept, and that nothing has touched since, is not read.

    Raises
        CheckpointError: (when asked) an input changed since it was opened, so nobody can say what is merged.
    """
    found, stop, store = plan.preflight, Event(), open_store()
    hash_all = partial(hash_files, stop=stop.is_set, keep=_cached_hash(store) if store else None)
    sources = [("base", found.base, None), *((task.name, task.checkpoint, task.weight) for task in found.tasks)]
    with ThreadPoolExecutor(hashing_threads()) as pool:  # hashing lets other threads work
        waiting: list[Future[InputRecord]] = []
        try:
            waiting += (pool.submit(_input, *source, hash_all) for source in sources)
            yield lambda: [one.result() for one in waiting]
        finally:
            stop.set()
            for one in waiting:
                one.cancel()


def make_report(
    plan: Plan,
    records: Sequence[TensorRecord],
    seconds: float,
    peak_bytes: int,
    hashed: Callable[[], list[InputRecord]],
) -> Report:
    """Put the report together once every tensor is merged.

    seconds: of the run so far. peak_bytes: what the run took at most, see MemoryMeter. hashed: see hashing().

    Raises
        CheckpointError: an input changed since it was opened, so nobody can say what was merged.
    """
    found = plan.preflight
    started = time.perf_counter()
    inputs = hashed()
    for checkpoint in found.checkpoints:
        refuse_changed(checkpoint)
    hashing_s = time.perf_counter() - started
    expected = plan.cost
    return Report(
        version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        method=plan.method.name,
        recipe=recipe_to_dict(plan.recipe),
        inputs=tuple(inputs),
        tensors=tuple(records),
        heads={task.name: match.heads for task, match in zip(found.tasks, found.matches, strict=True)},
        notes=found.notes,
        warnings=warnings_of(plan.task_names, records),
        machine={
            "device": str(plan.device),
            "executor": "local",
            "workers": 1,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "memory_predicted_bytes": expected.peak_bytes if expected else plan.peak_bytes,
            "memory_peak_bytes": peak_bytes,
            "seconds_predicted": expected.seconds if expected else None,
            "tensor_seconds_predicted": {e.name: e.seconds for e in expected.costliest()} if expected else {},
            "tensor_seconds": sum(record.seconds for record in records),
            "hashing_seconds": hashing_s,
        },
        seconds=seconds + hashing_s,
        output_bytes=plan.output_bytes,
    )


def warnings_of(tasks: Sequence[str], records: Sequence[TensorRecord]) -> tuple[str, ...]:
    """What a person should know about the superposed layers, in sentences with the numbers behind them."""
    warnings = []
    conflicts: dict[tuple[str, str], list[float]] = {}
    dropped = {record.name: record.figures["n_dropped"] for record in records if record.figures.get("n_dropped")}
    for record in records:
        for first, second, cosine in record.figures.get("conflicts", ()):
            names = record.figures.get("tasks", tasks)
            conflicts.setdefault((names[first], names[second]), []).append(cosine)
    for (left, right), cosines in conflicts.items():
        warnings.append(
            f"Conflict: {left} and {right} oppose each other in {len(cosines)} layers "
            f"(cosine down to {min(cosines):.2f}); the merged weight cannot do what both ask for."
        )
    if dropped:
        warnings.append(
            f"Tasks share features exactly in {len(dropped)} layers ({sum(dropped.values())} directions dropped): "
            "the least-norm solution was taken."
        )
    return tuple(warnings + _solves_in_doubt(records))


def _solves_in_doubt(records: Sequence[TensorRecord]) -> list[str]:
    """A sentence for layers whose system was left unfinished, and one for those off although no tasks oppose."""
    warnings = []
    early = [record for record in records if record.figures.get("solver") == STOPPED_EARLY]
    off = [
        record
        for record in records
        if record.figures.get("solver") != STOPPED_EARLY
        and not record.figures.get("conflicts")
        and record.figures.get("residual", 0.0) > LARGE_RESIDUAL
    ]
    if early:
        warnings.append(
            f"The solver was stopped early in {_layers(early)}: what the tasks ask for could not be met there without "
            "values that would harm the model. Choose a lower rank to have these layers solved to the end."
        )
    if off:
        warnings.append(
            f"The solution is inexact in {_layers(off)}, though no tasks oppose each other there. "
            "Compare the readout errors, and choose a lower rank if they matter."
        )
    return warnings


def _layers(records: Sequence[TensorRecord]) -> str:
    worst = max(records, key=lambda record: float(record.figures["residual"]))
    count = f"{len(records)} layers" if len(records) > 1 else "1 layer"
    return f"{count} (largest residual {worst.figures['residual']:.2g}, in {worst.name})"


def _input(
    name: str, checkpoint: Checkpoint, weight: float | None, hash_all: Callable[[Checkpoint], dict[str, str]]
) -> InputRecord:
    return InputRecord(name, str(checkpoint.path), weight, hash_all(checkpoint), hub_name(checkpoint.path))
