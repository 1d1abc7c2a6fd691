"""The report: the inputs with their hashes, what was done to every tensor, and what it took."""

from __future__ import annotations

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
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sftm_app import __version__
from sftm_app.engine.records import Figures, TensorRecord
from sftm_app.errors import CheckpointError
from sftm_app.output.findings import findings
from sftm_app.planning.account import accounts
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import recipe_to_dict
from sftm_app.session import Session
from sftm_app.units import format_bytes, format_duration
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hashing import hash_files, hashing_threads, refuse_changed
from sftm_app.weights.hub_names import hub_name
from sftm_app.weights.json_files import read_json


@dataclass(frozen=True)
class InputRecord:
    """An input: its folder, each weight file's SHA-256, and for one from the hub its "org/name@commit"."""

    name: str
    path: str
    weight: float | None
    sha256: dict[str, str]
    hub: str | None = None


@dataclass(frozen=True)
class Machine:
    """Where a merge ran, what it took, and what was predicted.

    Attributes:
        device: where it was computed.
        executor, workers: who merged, and how many processes took part.
        torch, threads: torch's version and number of threads.
        memory_predicted_bytes: the plan's peak.
        memory_peak_bytes: what the run took at most above what the process held before; of the process that took most.
        seconds_predicted: None if several processes merged, for which nothing is predicted.
        tensor_seconds_predicted: of the tensors that were predicted to take longest.
        tensor_seconds: of all tensors.
        hashing_seconds: of waiting for the hashes of the inputs.
        resumed_after_tensors: tensors that an earlier run had finished.
    """

    device: str
    torch: str
    threads: int
    memory_predicted_bytes: int
    memory_peak_bytes: int
    executor: str
    workers: int
    seconds_predicted: float | None
    tensor_seconds_predicted: dict[str, float]
    tensor_seconds: float
    hashing_seconds: float
    resumed_after_tensors: int = 0


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        version, created: of the app, and when (ISO 8601).
        method, recipe: the method's name, and the recipe as plain values.
        inputs: the base, then every task.
        tensors: a record for every tensor, or for every linear map in it.
        heads: per task the tensors that were kept apart.
        notes: what the preflight noted.
        warnings: what a person should know, in sentences.
        machine: where it ran and what it took.
        seconds: wall time.
        output_bytes: size of the output's tensors.
        account: what became of every tensor of every task, in one line a task, and of the tokenizers.
    """

    # A report of a later version, with fields that are not known here, is refused.
    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    version: str
    created: str
    method: str
    recipe: dict[str, Any]
    inputs: tuple[InputRecord, ...]
    tensors: tuple[TensorRecord, ...]
    heads: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    machine: Machine
    seconds: float
    output_bytes: int
    account: tuple[str, ...] = ()

    @property
    def readout_errors(self) -> dict[str, float]:
        """Median readout error over the measured layers, by task; empty if no layer was measured."""
        return self._medians(lambda figures: figures.readout_errors)

    @property
    def mapping_errors(self) -> dict[str, float]:
        """Median mapping error over the measured layers, by task; empty if no layer was measured."""
        return self._medians(lambda figures: figures.mapping_errors)

    @property
    def average_readout_errors(self) -> dict[str, float]:
        """The readout errors that the plain average would have."""
        return self._medians(lambda figures: figures.average_readout_errors)

    @property
    def average_mapping_errors(self) -> dict[str, float]:
        """The mapping errors that the plain average would have."""
        return self._medians(lambda figures: figures.average_mapping_errors)

    def _medians(self, figure: Callable[[Figures], Sequence[float]]) -> dict[str, float]:
        """Median over the layers of a figure that has one number per task; empty if no layer has it."""
        names = [entry.name for entry in self.inputs[1:]]
        # A layer that some task lacks has fewer numbers, so it is left out.
        rows = [row for record in self.tensors if len(row := figure(record.figures)) == len(names)]
        return {name: statistics.median(row[i] for row in rows) for i, name in enumerate(names)} if rows else {}

    @property
    def memory(self) -> str:
        """Memory taken and predicted: "312 MB of memory (300 MB expected) besides Python and torch"."""
        took, expected = self.machine.memory_peak_bytes, self.machine.memory_predicted_bytes
        return f"{format_bytes(took)} of memory ({format_bytes(expected)} expected) besides Python and torch"

    @property
    def time(self) -> str:
        """Time taken and predicted: "41.2 s (about 40 s expected)"."""
        expected = self.machine.seconds_predicted
        return f"{self.seconds:.1f} s" + (f" ({format_duration(expected)} expected)" if expected is not None else "")

    def to_json(self) -> str:
        """The report as a JSON document, without what is at its default; `load_report` reads it back."""
        return _REPORT.dump_json(self, indent=1, exclude_defaults=True).decode()


_REPORT = TypeAdapter(Report)


def load_report(path: Path) -> Report:
    """Read a report, also one that version 0.1.0 wrote.

    Raises:
        CheckpointError: it cannot be read, or another version wrote it.
    """
    try:
        return _REPORT.validate_python(read_json(path))
    except ValidationError:
        raise CheckpointError(f"{path}: is not a report of this version of SFTM Studio. Merge again.") from None


@contextmanager
def hashing(plan: Plan, session: Session) -> Iterator[Callable[[], list[InputRecord]]]:
    """Hash every input in the background. What is yielded waits for the last hash.

    A file whose hash is cached is not read.

    Raises:
        CheckpointError: (when asked) an input changed since it was opened, so nobody can say what is merged.
    """
    found, stop = plan.preflight, Event()
    keep = session.cache.hash_of if session.cache else None
    hash_all = partial(hash_files, stop=stop.is_set, keep=keep)
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
    session: Session,
    records: Sequence[TensorRecord],
    seconds: float,
    peak_bytes: int,
    hashed: Callable[[], list[InputRecord]],
) -> Report:
    """Put the report of a merge in one process together, once every tensor is merged.

    Args:
        plan, session: of the run.
        records: what the engine recorded.
        seconds: of the run so far.
        peak_bytes: what the run took at most; see `MemoryMeter`.
        hashed: see `hashing`.

    Raises:
        CheckpointError: an input changed since it was opened, so nobody can say what was merged.
    """
    found, cost = plan.preflight, plan.cost
    started = time.perf_counter()
    inputs = hashed()
    for checkpoint in found.checkpoints:
        refuse_changed(checkpoint)
    hashing_s = time.perf_counter() - started
    machine = Machine(
        device=str(plan.device),
        torch=torch.__version__,
        threads=session.n_threads,
        executor="local",
        workers=1,
        memory_predicted_bytes=cost.peak_bytes,
        memory_peak_bytes=peak_bytes,
        seconds_predicted=cost.seconds,
        tensor_seconds_predicted={entry.name: entry.seconds for entry in cost.costliest()},
        tensor_seconds=sum(record.seconds for record in records),
        hashing_seconds=hashing_s,
    )
    return Report(
        version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        method=plan.method.name,
        recipe=recipe_to_dict(plan.recipe),
        inputs=tuple(inputs),
        tensors=tuple(records),
        heads={task.name: match.heads for task, match in zip(found.tasks, found.matches, strict=True)},
        notes=found.notes,
        warnings=findings(plan.task_names, records),
        machine=machine,
        seconds=seconds + hashing_s,
        output_bytes=plan.output_bytes,
        account=(*(one.sentence() for one in accounts(plan)), *found.tokenizers.notes),
    )


def _input(
    name: str, checkpoint: Checkpoint, weight: float | None, hash_all: Callable[[Checkpoint], dict[str, str]]
) -> InputRecord:
    return InputRecord(name, str(checkpoint.path), weight, hash_all(checkpoint), hub_name(checkpoint.path))
