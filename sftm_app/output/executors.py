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
    """A tensor that is in the output.

    Attributes:
        entry: the plan's entry.
        checksum: of its bytes.
        records: its lines of the report.
        worker: a name for the process that merged it.
        peak_bytes: the most memory that it took, if another process merged it.
    """

    entry: PlanEntry
    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int = 0


# Merges entries of a plan, each once and in any order, and writes them to their places.
WriteEntries = Callable[[Sequence[PlanEntry], WeightsWriter], Generator[WrittenTensor, None, None]]


class Executor(Protocol):
    """Who merges the tensors of a plan. It is ready before anything is written, and cleans up after the merge."""

    @property
    def name(self) -> str:
        """The word for it in commands and reports."""

    def ready(self, plan: Plan, session: Session) -> AbstractContextManager[WriteEntries]:
        """Get ready to merge a plan."""


class LocalExecutor:
    """Merges in this process, one tensor after the other in the plan's order."""

    name = "local"

    @contextmanager
    def ready(self, plan: Plan, session: Session) -> Iterator[WriteEntries]:
        """Nothing has to be prepared."""
        yield lambda entries, writer: _write_entries(plan, session, entries, writer)


def _write_entries(
    plan: Plan, session: Session, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    for merged in run(dataclasses.replace(plan, entries=tuple(entries)), session):
        entry, records = merged.entry, merged.records
        checksum = writer.write(entry.name, merged.tensor)
        del merged  # so that it is not held while the next one is made
        yield WrittenTensor(entry, checksum, records, LocalExecutor.name)
