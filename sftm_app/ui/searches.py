"""The searches for the best merge that this server carries out: one at a time, each kept on disk as it goes."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from cachetools import LRUCache

from sftm_app.errors import JobError, SFTMError
from sftm_app.tuning.search import Budget, Search, search
from sftm_app.tuning.setup import About, Setup
from sftm_app.ui.comparisons import Conditions

WORKSPACES_KEPT = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SearchBoard:
    """The search of one workspace.

    Attributes:
        setup: what is searched.
        about: what was asked for.
        conditions: the samples, for people.
        search: as far as it is.
        state: "running", "done", "cancelled", "failed", or "left" by a server that ended.
        problem: why it failed, in a sentence.
        note: what a person should know about it.
    """

    setup: Setup
    about: About
    conditions: Conditions
    search: Search
    state: Literal["running", "done", "cancelled", "failed", "left"] = "running"
    problem: str = ""
    note: str = ""

    @property
    def drawn(self) -> tuple[object, ...]:
        """Changes whenever the table or a plot does, which is seldom compared with the progress."""
        comparison = self.search.comparison
        rows = tuple((row.candidate.key, row.state) for row in comparison.rows) if comparison else ()
        return str(self.setup.folder), self.state, len(self.search.tried), rows


@dataclass
class _Running:
    """The search that runs now."""

    key: object
    stop: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)


class Searches:
    """The searches by workspace. Safe to use from several requests at once."""

    def __init__(self) -> None:
        self._boards: LRUCache[object, SearchBoard] = LRUCache(WORKSPACES_KEPT)
        self._running: _Running | None = None
        self._lock = threading.RLock()

    def board(self, key: object) -> SearchBoard | None:
        """The search of a workspace, as far as it is."""
        with self._lock:
            return self._boards.get(key)

    def show(self, key: object, board: SearchBoard) -> None:
        """Keep a search that was read from disk, unless there is one already."""
        with self._lock:
            self._boards.setdefault(key, board)

    def start(self, key: object, board: SearchBoard, budget: Budget) -> None:
        """Carry out a search in a thread.

        Raises:
            JobError: another search runs.
        """
        with self._lock:
            if self._running is not None:
                raise JobError("A search runs already. Wait for it, or stop it.")
            running = self._running = _Running(key)
            self._boards[key] = board
            thread = threading.Thread(
                target=self._work, args=(running, board.setup, budget), name="search", daemon=True
            )
            thread.start()

    def stop(self, key: object) -> None:
        """End the trials of a workspace's search after the one that runs, and report what was found."""
        with self._lock:
            if self._running is not None and self._running.key == key:
                self._running.stop.set()

    def cancel(self, key: object) -> None:
        """End the search of a workspace at once. The trials that ended stay."""
        with self._lock:
            if self._running is not None and self._running.key == key:
                self._running.cancel.set()

    def _work(self, running: _Running, setup: Setup, budget: Budget) -> None:
        state, problem = "done", ""
        try:
            with closing(search(setup, budget, running.stop.is_set)) as steps:
                for now in steps:
                    self._change(running, search=now)
                    if running.cancel.is_set():
                        state = "cancelled"
                        break
        except SFTMError as error:
            state, problem = "failed", str(error)
        except Exception:
            _log.exception("unexpected error in a search")
            state, problem = "failed", "An unexpected error occurred. See the terminal that runs the app for details."
        with self._lock:
            self._running = None
            self._change(running, state=state, problem=problem)

    def _change(self, running: _Running, **changes: object) -> None:
        with self._lock:
            board = self._boards.get(running.key)
            if board is not None:
                self._boards[running.key] = replace(board, **changes)  # type: ignore[arg-type]
