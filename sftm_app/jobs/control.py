"""Start and cancel runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from sftm_app.checkpoints.writer import PARTIAL_SUFFIX
from sftm_app.errors import JobError
from sftm_app.jobs.folder import RunFolder, create_run, identity, list_runs, status, worker_process
from sftm_app.merging.recipe import Recipe

# Cancel promises two seconds in all: the worker gets most of them to leave by itself.
POLITE_S = 1.2


def start(runs_root: Path, recipe: Recipe) -> RunFolder:
    """Start a worker process for a recipe with absolute paths and return its run folder at once.

    Raises
        JobError: another run is active, or the folder cannot be written.
    """
    active = active_run(runs_root)
    if active is not None:
        raise JobError("A merge is running already. Wait for it, or cancel it first.")
    folder = create_run(runs_root, recipe)
    with open(folder.path / "worker.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sftm_app.jobs.worker", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own session: Ctrl-C at the server's terminal does not reach it, the run goes on.
            start_new_session=True,
            env={**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        )
    # Said here: the worker needs seconds to import torch, and until it speaks it could be neither seen nor stopped.
    with contextlib.suppress(psutil.Error):
        folder.append("started", **identity(psutil.Process(process.pid)))
    # Popen objects that are dropped while their process lives warn, and leave a zombie until the next one: reap it.
    _reap_later(process)
    return folder


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    import threading

    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()


def active_run(runs_root: Path) -> RunFolder | None:
    """The run that is going on, if any. Runs are named by their time, so only the newest few can be."""
    return next((folder for folder in list_runs(runs_root)[:5] if status(folder).active), None)


def cancel(folder: RunFolder) -> None:
    """Stop a run within two seconds; its output is gone, its folder says "cancelled".

    The worker looks at the flag after every tensor. One that is deep in a factorisation gets SIGTERM, then SIGKILL.
    """
    if not status(folder).active:
        return
    folder.cancel_flag.touch()
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
        # Stopped between the last tensor and the word "done": what is not announced must not lie there.
        shutil.rmtree(folder.model, ignore_errors=True)
        folder.append("cancelled")
