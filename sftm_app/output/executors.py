"""Who merges the tensors of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import run
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.weights.writer import WeightsWriter


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of the output that is written.

    Attributes:
        entry: the plan's entry.
        checksum: of its bytes.
        records: its lines of the report.
        worker: the process that merged it, by any name.
        peak_bytes: the memory that another process took for it at most.
    """

    entry: PlanEntry
    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int = 0


# Merges entries of a plan, each once and in any order, and writes them by the writer.
WriteEntries = Callable[[Sequence[PlanEntry], WeightsWriter], Generator[WrittenTensor, None, None]]


class Executor(Protocol):
    """Who merges the tensors of a plan. What it needs is ready before anything is written, and gone after the merge."""

    @property
    def name(self) -> str:
        """The word for it in commands and reports."""

    def ready(self, plan: Plan, session: Session) -> AbstractContextManager[WriteEntries]:
        """Get ready to merge a plan."""


class LocalExecutor:
    """This process, one tensor after the other in the plan's order."""

    name = "local"

    @contextmanager
    def ready(self, plan: Plan, session: Session) -> Iterator[WriteEntries]:
        """Nothing is needed."""
        yield lambda entries, writer: _write_entries(plan, session, entries, writer)


def _write_entries(
    plan: Plan, session: Session, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    for merged in run(dataclasses.replace(plan, entries=tuple(entries)), session):
        entry, records = merged.entry, merged.records
        checksum = writer.write(entry.name, merged.tensor)
        del merged  # so that its tensor is not held while the next one is made
        yield WrittenTensor(entry, checksum, records, LocalExecutor.name)
