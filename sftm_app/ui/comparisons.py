"""The comparisons that this server makes: one runs at a time, and each stays until the server ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

import psutil
from cachetools import LRUCache

from sftm_app.errors import JobError, ResourceError, SFTMError
from sftm_app.evaluation.candidates import Candidate
from sftm_app.evaluation.comparison import Comparison, compare
from sftm_app.evaluation.measuring import Benchmark
from sftm_app.units import format_distinct

WORKSPACES_KEPT = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """What all rows of a table share, apart from the models.

    Attributes:
        where: the path of a person's own samples; empty for the demo's.
        limit: samples per task at most.
        split_fused: whether fused maps were merged one by one.
        left_out: sentences on tasks without samples.
    """

    where: str = ""
    limit: int = 0
    split_fused: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """The table of one workspace.

    Attributes:
        conditions: what its rows were measured with.
        comparison: the rows.
        state: "running", "done", "cancelled" or "failed".
        problem: why it failed, in a sentence.
    """

    conditions: Conditions
    comparison: Comparison
    state: Literal["running", "done", "cancelled", "failed"] = "running"
    problem: str = ""

    @property
    def drawn(self) -> tuple[object, ...]:
        """Changes whenever the table or the plot does, which is seldom compared with the progress."""
        return self.state, self.conditions, tuple((row.candidate.key, row.state) for row in self.comparison.rows)


@dataclass
class _Running:
    """The comparison that runs now."""

    key: object
    stop: threading.Event = field(default_factory=threading.Event)


class Comparisons:
    """The tables by workspace. Safe to use from several requests at once."""

    def __init__(self) -> None:
        self._boards: LRUCache[object, Board] = LRUCache(WORKSPACES_KEPT)
        self._running: _Running | None = None
        self._lock = threading.RLock()

    def board(self, key: object) -> Board | None:
        """The table of a workspace, as far as it is."""
        with self._lock:
            return self._boards.get(key)

    def start(
        self, key: object, conditions: Conditions, benchmark: Benchmark, candidates: Sequence[Candidate]
    ) -> threading.Thread:
        """Measure models in a thread. Rows of this workspace that were measured under the same conditions stay.

        Args:
            key: of the workspace.
            conditions: what the models are measured with.
            benchmark: the same, ready to use.
            candidates: the models.

        Returns:
            The thread, already started.

        Raises:
            JobError: another comparison runs.
            ResourceError: the memory that is free does not hold one merged model.
        """
        refuse_large(benchmark)
        with self._lock:
            if self._running is not None:
                raise JobError("Methods are being compared already. Wait for the table, or cancel it.")
            before = self._boards.get(key)
            n_samples = {task: len(samples) for task, samples in benchmark.samples.items()}
            rows = before.comparison.rows if before and before.conditions == conditions else ()
            comparison = Comparison(n_samples, rows).with_candidates(candidates)
            self._running = _Running(key)
            self._boards[key] = Board(conditions, comparison)
            arguments = (self._running, compare(benchmark, comparison))
            thread = threading.Thread(target=self._work, args=arguments, name="compare", daemon=True)
            thread.start()
            return thread

    def cancel(self, key: object) -> None:
        """Stop the comparison of a workspace, if one runs. What was measured stays."""
        with self._lock:
            if self._running is not None and self._running.key == key:
                self._running.stop.set()

    def clear(self, key: object) -> None:
        """Forget the table of a workspace, unless it is being filled."""
        with self._lock:
            if self._running is None or self._running.key != key:
                self._boards.pop(key, None)

    def _work(self, running: _Running, steps: Generator[Comparison, None, None]) -> None:
        state, problem = "done", ""
        try:
            with closing(steps):
                for comparison in steps:
                    self._change(running, comparison=comparison)
                    if running.stop.is_set():
                        state = "cancelled"
                        break
        except SFTMError as error:
            state, problem = "failed", str(error)
        except Exception:
            _log.exception("unexpected error while methods were compared")
            state, problem = "failed", "An unexpected error occurred. See the terminal that runs the app for details."
        with self._lock:
            self._running = None
            self._change(running, state=state, problem=problem)

    def _change(self, running: _Running, **changes: object) -> None:
        with self._lock:
            board = self._boards.get(running.key)
            if board is not None:
                board = replace(board, **changes)  # type: ignore[arg-type]
                if board.state != "running":
                    board = replace(board, comparison=replace(board.comparison, rows=board.comparison.finished))
                self._boards[running.key] = board


def refuse_large(benchmark: Benchmark) -> None:
    """Refuse to compare models of which one, merged and built, does not fit into the memory that is free.

    Raises:
        ResourceError: it does not fit.
    """
    # The merged tensors, and the model that is built from them.
    needed = 2 * benchmark.found.base.n_bytes
    free = psutil.virtual_memory().available
    if needed > free:
        needs, has = format_distinct(needed, free)
        raise ResourceError(
            f"One merged model takes {needs} of memory while it is tried, and {has} are free. Close other programs, or "
            "merge to disk and try the result on the Evaluate tab."
        )
