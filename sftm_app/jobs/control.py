"""Start, resume and cancel runs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from sftm_app.errors import JobError
from sftm_app.jobs.folder import RunFolder, create_run, list_runs, status, worker_process
from sftm_app.jobs.workers import Workers
from sftm_app.planning.recipe import Recipe
from sftm_app.weights.partial import folder_lock, partial_of, remove_partial

# Cancel promises two seconds in all: the worker gets most of them to leave by itself.
POLITE_S = 1.2


def start(runs_root: Path, recipe: Recipe, workers: Workers | None = None) -> RunFolder:
    """Start a recipe with absolute paths in a worker process and return its run folder at once.

    Raises
        JobError: another run is active, the folder cannot be written, or no worker process can be started; the run
            then says "failed".
    """
    with folder_lock(runs_root):
        _refuse_second(runs_root)
        folder = create_run(runs_root, recipe)
        _launch(folder, workers)
    return folder


def resume(folder: RunFolder, workers: Workers | None = None) -> None:
    """Go on with a run whose status is `resumable`, in its own folder: it finishes as if it had never been stopped.

    When inputs, app or torch are not those it began with, it ends as "failed" and says so; what was finished stays.

    Raises
        JobError: there is nothing to go on with, another run is active, or as for start().
    """
    with folder_lock(folder.path.parent):
        if not status(folder).resumable:
            raise JobError("Nothing is left of this run to go on with. Start the merge again.")
        _refuse_second(folder.path.parent)
        try:
            folder.cancel_flag.unlink(missing_ok=True)
            # If a crash tore the last line, it is this word that is lost behind it, and not the worker's.
            folder.append("resumed")
        except OSError as error:
            raise JobError(f"{folder.path}: the run cannot be resumed ({error.strerror}).") from None
        _launch(folder, workers)


def discard(folder: RunFolder) -> None:
    """Throw away what a stopped run finished, so that its space is free again. A run that is active is left alone.

    Raises
        JobError: it cannot be removed.
    """
    if status(folder).active:
        return
    try:
        remove_partial(partial_of(folder.model))
    except OSError as error:
        raise JobError(f"{folder.path}: cannot be cleared ({error.strerror}). Remove it yourself.") from None


def _refuse_second(runs_root: Path) -> None:
    if active_run(runs_root) is not None:
        raise JobError("A merge is running already. Wait for it, or cancel it first.")


def _launch(folder: RunFolder, workers: Workers | None) -> None:
    try:
        (workers or Workers()).launch(folder)
    except (OSError, JobError) as error:
        said = f"No worker process could be started ({getattr(error, 'strerror', None) or error}). Try again."
        with contextlib.suppress(OSError):
            folder.append("failed", message=said)
        raise JobError(said) from None


def active_run(runs_root: Path) -> RunFolder | None:
    """The run that is going on, if any. Only one of the few that something was last said of can be."""
    latest = sorted(list_runs(runs_root), key=_last_word, reverse=True)
    return next((folder for folder in latest[:5] if status(folder).active), None)


def _last_word(folder: RunFolder) -> float:
    for path in (folder.events_file, folder.path):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def cancel(folder: RunFolder, keep: bool = False) -> None:
    """Stop a run within two seconds; its output is gone, its folder says "cancelled". One that was done is left alone.

    The worker looks at the flag after every tensor. One that is deep in a factorisation gets SIGTERM, then SIGKILL.

    keep: leave what it finished, for resume(); the worker is killed at once, which harms none of that.

    Raises
        JobError: the run belongs to another user.
    """
    if not status(folder).active:
        return
    if keep:
        with folder_lock(folder.path.parent):
            _kill(folder)
            if status(folder).state != "done":
                folder.append("cancelled", message="Stopped. What it finished is kept: resume it whenever you like.")
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
    _kill(folder)
    with contextlib.suppress(OSError):
        remove_partial(partial_of(folder.model))
    if status(folder).state not in ("done", "cancelled", "failed"):
        folder.append("cancelled")


def _kill(folder: RunFolder) -> None:
    process = worker_process(folder.events())
    if process is not None:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(0.3)
