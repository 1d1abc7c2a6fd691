"""Start and cancel runs."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import psutil

from sftm_app.checkpoints.writer import PARTIAL_SUFFIX
from sftm_app.errors import JobError
from sftm_app.jobs.folder import RunFolder, create_run, list_runs, status, worker_process
from sftm_app.jobs.workers import Workers
from sftm_app.merging.recipe import Recipe

# Cancel promises two seconds in all: the worker gets most of them to leave by itself.
POLITE_S = 1.2


def start(runs_root: Path, recipe: Recipe, workers: Workers | None = None) -> RunFolder:
    """Start a recipe with absolute paths in a worker process and return its run folder at once.

    Raises
        JobError: another run is active, the folder cannot be written, or no worker process can be started; the run
            then says "failed".
    """
    if active_run(runs_root) is not None:
        raise JobError("A merge is running already. Wait for it, or cancel it first.")
    folder = create_run(runs_root, recipe)
    try:
        (workers or Workers()).launch(folder)
    except (OSError, JobError) as error:
        said = f"No worker process could be started ({getattr(error, 'strerror', None) or error}). Try again."
        with contextlib.suppress(OSError):
            folder.append("failed", message=said)
        raise JobError(said) from None
    return folder


def active_run(runs_root: Path) -> RunFolder | None:
    """The run that is going on, if any. Runs are named by their time, so only the newest few can be."""
    return next((folder for folder in list_runs(runs_root)[:5] if status(folder).active), None)


def cancel(folder: RunFolder) -> None:
    """Stop a run within two seconds; its output is gone, its folder says "cancelled". One that was done is left alone.

    The worker looks at the flag after every tensor. One that is deep in a factorisation gets SIGTERM, then SIGKILL.

    Raises
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
    shutil.rmtree(folder.model.with_name(folder.model.name + PARTIAL_SUFFIX), ignore_errors=True)
    if status(folder).state not in ("done", "cancelled", "failed"):
        folder.append("cancelled")
