"""The comparisons that this server makes: one runs at a time, others wait, and each stays until the server ends."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
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

BOARDS_KEPT = 32

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
    """Models that are measured together, for one place of the page.

    Attributes:
        conditions: what its rows were measured with.
        comparison: the rows.
        state: "waiting" for another one to end, "running", "done", "cancelled" or "failed".
        problem: why it failed, in a sentence.
    """

    conditions: Conditions
    comparison: Comparison
    state: Literal["waiting", "running", "done", "cancelled", "failed"] = "waiting"
    problem: str = ""

    @property
    def active(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in ("waiting", "running")

    @property
    def drawn(self) -> tuple[object, ...]:
        """Changes whenever the table or the plot does, which is seldom compared with the progress."""
        return self.state, self.conditions, tuple((row.candidate.key, row.state) for row in self.comparison.rows)


@dataclass
class _Job:
    """A comparison that runs or waits."""

    key: object
    benchmark: Benchmark
    comparison: Comparison
    stop: threading.Event = field(default_factory=threading.Event)


class Comparisons:
    """The boards by key: a workspace, and what of it is compared. Safe to use from several requests at once."""

    def __init__(self) -> None:
        self._boards: LRUCache[object, Board] = LRUCache(BOARDS_KEPT)
        self._jobs: deque[_Job] = deque()  # the first one runs
        self._lock = threading.RLock()

    def board(self, key: object) -> Board | None:
        """A board, as far as it is."""
        with self._lock:
            return self._boards.get(key)

    def start(self, key: object, conditions: Conditions, benchmark: Benchmark, candidates: Sequence[Candidate]) -> None:
        """Measure models in a thread. Rows of this board that were measured under the same conditions stay.

        Args:
            key: of the board.
            conditions: what the models are measured with.
            benchmark: the same, ready to use.
            candidates: the models.

        Raises:
            JobError: this board is being filled.
            ResourceError: the memory that is free does not hold one merged model.
        """
        refuse_large(benchmark)
        with self._lock:
            before = self._boards.get(key)
            if self._job(key) is not None:
                raise JobError("Models are being compared already. Wait for the table, or cancel it.")
            n_samples = {task: len(samples) for task, samples in benchmark.samples.items()}
            rows = before.comparison.rows if before and before.conditions == conditions else ()
            comparison = Comparison(n_samples, rows).with_candidates(candidates)
            self._boards[key] = Board(conditions, comparison)
            self._jobs.append(_Job(key, benchmark, comparison))
            if len(self._jobs) == 1:
                threading.Thread(target=self._work, name="compare", daemon=True).start()

    def cancel(self, key: object) -> None:
        """Stop the comparison of a board, if one runs or waits. What was measured stays."""
        with self._lock:
            job = self._job(key)
            if job is not None:
                job.stop.set()
                if job is not self._jobs[0]:
                    self._jobs.remove(job)
                    self._change(job, state="cancelled")

    def clear(self, key: object) -> None:
        """Forget a board, unless it is being filled."""
        with self._lock:
            if self._job(key) is None:
                self._boards.pop(key, None)

    def _job(self, key: object) -> _Job | None:
        return next((job for job in self._jobs if job.key == key), None)

    def _work(self) -> None:
        """Carry out the jobs that wait, until none is left."""
        while True:
            with self._lock:
                job = self._jobs[0]
            state, problem = self._carry_out(job)
            with self._lock:
                self._jobs.popleft()
                self._change(job, state=state, problem=problem)
                if not self._jobs:
                    return

    def _carry_out(self, job: _Job) -> tuple[str, str]:
        """Measure; returns how it ended, and why it failed."""
        try:
            self._change(job, state="running")
            with closing(compare(job.benchmark, job.comparison)) as steps:
                for comparison in steps:
                    self._change(job, comparison=comparison)
                    if job.stop.is_set():
                        return "cancelled", ""
        except SFTMError as error:
            return "failed", str(error)
        except Exception:
            _log.exception("unexpected error while models were compared")
            return "failed", "An unexpected error occurred. See the terminal that runs the app for details."
        return "done", ""

    def _change(self, job: _Job, **changes: object) -> None:
        with self._lock:
            board = self._boards.get(job.key)
            if board is not None:
                board = replace(board, **changes)  # type: ignore[arg-type]
                if not board.active:
                    board = replace(board, comparison=replace(board.comparison, rows=board.comparison.finished))
                self._boards[job.key] = board


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
