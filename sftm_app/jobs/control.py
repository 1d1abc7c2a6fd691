"""Start, resume and cancel runs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from sftm_app.errors import JobError
from sftm_app.jobs.events import Failed, Resumed, WasCancelled
from sftm_app.jobs.folder import RunFolder, create_run, list_runs
from sftm_app.jobs.status import status, worker_process
from sftm_app.jobs.workers import Workers
from sftm_app.planning.recipe import Recipe
from sftm_app.weights.partial import folder_lock, partial_of, remove_partial

# Cancel takes two seconds at most; for most of them the worker is given the chance to stop by itself.
POLITE_S = 1.2


def start(runs_root: Path, recipe: Recipe, workers: Workers) -> RunFolder:
    """Start a recipe with absolute paths in a worker process, and return its run folder at once.

    Raises:
        JobError: another run is active, the folder cannot be written, or no worker process can be started; the run
            is then "failed".
    """
    with folder_lock(runs_root):
        _refuse_second(runs_root)
        folder = create_run(runs_root, recipe)
        _launch(folder, workers)
    return folder


def resume(folder: RunFolder, workers: Workers) -> None:
    """Resume a run whose status is `resumable`, in its own folder. The result is as if it had never been stopped.

    If inputs, app or torch have changed, the run fails with a sentence, and what was finished stays.

    Raises:
        JobError: there is nothing to resume, another run is active, or as for start().
    """
    with folder_lock(folder.path.parent):
        if not status(folder).resumable:
            raise JobError("Nothing is left of this run to resume. Start the merge again.")
        _refuse_second(folder.path.parent)
        try:
            folder.cancel_flag.unlink(missing_ok=True)
            # If a crash tore the last line, this event is lost behind it, and not the worker's first.
            folder.append(Resumed())
        except OSError as error:
            raise JobError(f"{folder.path}: the run cannot be resumed ({error.strerror}).") from None
        _launch(folder, workers)


def _refuse_second(runs_root: Path) -> None:
    if active_run(runs_root) is not None:
        raise JobError("A merge is running already. Wait for it, or cancel it first.")


def _launch(folder: RunFolder, workers: Workers) -> None:
    try:
        workers.launch(folder)
    except (OSError, JobError) as error:
        why = getattr(error, "strerror", None) or error
        message = f"No worker process could be started ({why}). Try again."
        with contextlib.suppress(OSError):
            folder.append(Failed(message))
        raise JobError(message) from None


def active_run(runs_root: Path) -> RunFolder | None:
    """The run that is active, if any. It is one of the few that changed last."""
    latest = sorted(list_runs(runs_root), key=_changed, reverse=True)
    return next((folder for folder in latest[:5] if status(folder).active), None)


def _changed(folder: RunFolder) -> float:
    for path in (folder.events_file, folder.path):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def cancel(folder: RunFolder) -> None:
    """Stop a run within two seconds, and remove its output. A run that has ended is left alone.

    The worker looks at the flag after every tensor. One that is deep in a factorisation gets SIGTERM, then SIGKILL.

    Raises:
        JobError: the run belongs to another user.
    """
    if not status(folder).active:
        return
    try:
        folder.cancel_flag.touch()
    except OSError as error:
        raise JobError(f"{folder.path}: the run cannot be cancelled ({error.strerror}).") from None
    deadline = time.monotonic() + POLITE_S
    while status(folder).active and time.monotonic() < deadline:
        time.sleep(0.05)
    if not status(folder).active:
        return
    process = worker_process(folder.events())
    if process is not None:
        with contextlib.suppress(psutil.Error):
            process.terminate()
            process.wait(0.3)
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(0.3)
    with contextlib.suppress(OSError):
        remove_partial(partial_of(folder.model))
    if status(folder).state not in ("done", "cancelled", "failed"):
        folder.append(WasCancelled())
