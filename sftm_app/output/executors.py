"""Who merges the tensors of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from sftm_app.engine.cache import open_store
from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import run
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.weights.writer import WeightsWriter


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of the output whose bytes are in their place.

    worker: the process that made it, by any name. peak_bytes: the memory that another process took for it at most.
    """

    entry: PlanEntry
    checksum: int
    records: tuple[TensorRecord, ...]
    worker: str
    peak_bytes: int = 0


# Merges entries of a plan, each once and in any order, and has `writer` know their bytes in their place.
WriteEntries = Callable[[Sequence[PlanEntry], WeightsWriter], Generator[WrittenTensor, None, None]]


class Executor(Protocol):
    """Who merges the tensors of a plan. What it needs is ready before anything is written, and gone after the merge."""

    @property
    def name(self) -> str: ...

    def ready(self, plan: Plan) -> AbstractContextManager[WriteEntries]: ...


class LocalExecutor:
    """This process, one tensor after the other in the plan's order."""

    name = "local"

    @contextmanager
    def ready(self, plan: Plan) -> Iterator[WriteEntries]:
        """Nothing is needed."""
        yield lambda entries, writer: _place_here(plan, entries, writer)


def _place_here(
    plan: Plan, entries: Sequence[PlanEntry], writer: WeightsWriter
) -> Generator[WrittenTensor, None, None]:
    for merged in run(dataclasses.replace(plan, entries=tuple(entries)), open_store()):
        entry, records = merged.entry, merged.records
        checksum = writer.write(entry.name, merged.tensor)
        del merged  # its tensor would be held while the next one is made
        yield WrittenTensor(entry, checksum, records, LocalExecutor.name)
