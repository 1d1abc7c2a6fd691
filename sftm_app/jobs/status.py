"""The state of a run, from its folder and its process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from sftm_app.jobs.events import Done, Event, Failed, Progressed, Started, WasCancelled
from sftm_app.jobs.folder import RunFolder
from sftm_app.output.resume import has_progress

ACTIVE = ("starting", "running")
# A worker that has not started within this time never will: importing torch takes seconds, not minutes.
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes:
        state: "starting", "running", "done", "failed", "cancelled", or "died" (the process ended without reporting it).
        fraction: how far along the merge is, 0..1.
        done, total: tensors.
        message: a sentence on what went wrong; while it runs, the name of the last tensor.
        remaining_s: None while nothing is known.
        resumable: the run was stopped, and what it finished is there; see control.resume.
    """

    run_id: str
    state: str
    fraction: float = 0.0
    done: int = 0
    total: int = 0
    message: str = ""
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    resumable: bool = False

    @property
    def active(self) -> bool:
        """Whether the run has not ended yet."""
        return self.state in ACTIVE


def status(folder: RunFolder) -> RunStatus:
    """The state of a run from its events, its process, and whether its model is there."""
    try:
        return _status(folder)
    except OSError as error:  # its files were removed or damaged: it runs for nobody
        why = error.strerror or "unknown"
        return RunStatus(folder.run_id, "died", message=f"The files of this run cannot be read ({why}).")


def _status(folder: RunFolder) -> RunStatus:
    events = folder.events()
    if not events:
        age = time.time() - folder.path.stat().st_mtime
        if age > START_LIMIT_S:
            return RunStatus(folder.run_id, "died", message="The worker process never started. Start the merge again.")
        return RunStatus(folder.run_id, "starting", message="Starting the worker process")
    alive = worker_process(events) is not None
    if not alive:
        events = folder.events()  # it may have reported its end since
    last = events[-1]
    progress = next((event for event in reversed(events) if isinstance(event, Progressed)), None)
    now = _progress(folder, progress)
    # The model appears complete or not at all. A worker stopped before it could report the end was done nevertheless.
    finished = isinstance(last, Started | Progressed) and not alive and folder.report.is_file()
    if isinstance(last, Done) or finished:
        return replace(now, state="done", fraction=1.0, remaining_s=0.0)
    if isinstance(last, Failed | WasCancelled):
        return replace(now, state=last.kind, message=last.message, resumable=has_progress(folder.model))
    if alive:
        return replace(now, state="running", message=progress.name if progress else "Reading the checkpoints")
    return _died(folder, now, progress)


def _progress(folder: RunFolder, progress: Progressed | None) -> RunStatus:
    now = RunStatus(folder.run_id, "running")
    if progress is None:
        return now
    return replace(
        now,
        fraction=progress.fraction,
        done=progress.done,
        total=progress.total,
        elapsed_s=progress.elapsed_s,
        remaining_s=progress.remaining_s,
    )


def _died(folder: RunFolder, now: RunStatus, progress: Progressed | None) -> RunStatus:
    resumable = has_progress(folder.model)
    where = f" after {progress.name!r}" if progress else ""
    kept = "Finished tensors are kept: resume the merge, or start it" if resumable else "No model was written. Start it"
    message = (
        f"The worker process ended{where}; the system may have stopped it because memory ran out. {kept} again, with a "
        "lower rank if memory is short."
    )
    return replace(now, state="died", message=message, resumable=resumable)


def worker_process(events: Sequence[Event]) -> psutil.Process | None:
    """The running process that was given the run last; None if it has ended."""
    # The last one: if a warm worker is gone already, the run is given to another.
    started = next((event for event in reversed(events) if isinstance(event, Started)), None)
    return started.process() if started else None
