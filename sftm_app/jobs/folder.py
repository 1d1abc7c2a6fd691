"""The folder of a run, and what can be read from it by anybody at any time.

recipe.yaml     what is to be done
events.jsonl    one JSON table a line, appended by the worker: started, progress, done, failed, cancelled, resumed
model/          the merged model with its report, complete as soon as it is there (model.partial/ until then)
cancel          present once somebody asked to stop
worker.log      what the worker process printed
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sftm_app.errors import JobError
from sftm_app.output.report import REPORT_NAME
from sftm_app.output.resume import has_progress
from sftm_app.planning.recipe import Recipe, load_recipe, recipe_to_yaml

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
ACTIVE = ("starting", "running")
# A worker that has not said "started" within this time never will: importing torch takes seconds, not minutes.
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class RunStatus:
    """What a run's folder says.

    state: "starting", "running", "done", "failed", "cancelled" or "died" (the process vanished without a word).
    fraction: share of the work done, 0..1. message: a sentence on failure, else the tensor in work. remaining_s: None
    as long as nobody knows.
    resumable: it was stopped, and what it finished is there to go on with; see control.resume.
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
        return self.state in ACTIVE


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.model / REPORT_NAME

    @property
    def cancel_flag(self) -> Path:
        return self.path / "cancel"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml")

    def append(self, kind: str, **values: Any) -> None:
        """Add one event. A single write of one line, so that a reader never sees half of two."""
        line = json.dumps({"kind": kind, "time": time.time(), **values}) + "\n"
        with open(self.events_file, "a", encoding="utf-8") as file:
            file.write(line)

    def events(self) -> list[dict[str, Any]]:
        """All events so far. A last line that is still being written is left out, and one that a crash tore."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.events_file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found


def create_run(runs_root: Path, recipe: Recipe) -> RunFolder:
    """A new run folder with its recipe.

    Raises
        JobError: the folder cannot be written.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = RunFolder(runs_root / run_id)
    try:
        folder.path.mkdir(parents=True)
        (folder.path / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    except OSError as error:
        raise JobError(f"{runs_root}: cannot be written ({error.strerror}). Start with another --output-dir.") from None
    return folder


def open_run(runs_root: Path, run_id: str) -> RunFolder:
    """The folder of a known run. The id may come from a browser, so it is checked.

    Raises
        JobError: no such run.
    """
    folder = RunFolder(runs_root / run_id)
    if not RUN_ID.fullmatch(run_id) or not os.path.isdir(folder.path) or not _is_readable(folder.path):
        raise JobError(f"There is no run {run_id!r}. Choose one of the list.")
    return folder


def list_runs(runs_root: Path) -> list[RunFolder]:
    """Every run that this user may look into, newest first.

    Raises
        JobError: no permission to look into `runs_root`.
    """
    try:
        names = sorted((name for name in os.listdir(runs_root) if RUN_ID.fullmatch(name)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise JobError(f"{runs_root}: cannot be read ({error.strerror}). Start with another --output-dir.") from None
    return [RunFolder(runs_root / name) for name in names if _is_readable(runs_root / name)]


def _is_readable(folder: Path) -> bool:
    """Whether this user may see a run's files; another user's runs are left out rather than failing every list."""
    try:
        os.stat(folder / "events.jsonl")
        return os.access(folder / "events.jsonl", os.R_OK)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def status(folder: RunFolder) -> RunStatus:
    """The state of a run from its events, from whether its process lives, and from whether its model is there."""
    events = folder.events()
    if not events:
        age = time.time() - folder.path.stat().st_mtime
        if age > START_LIMIT_S:
            return RunStatus(folder.run_id, "died", message="The worker process never started. Start the merge again.")
        return RunStatus(folder.run_id, "starting", message="Starting the worker process")
    last = events[-1]
    progress: dict[str, Any] = next((event for event in reversed(events) if event["kind"] == "progress"), {})
    shown: dict[str, Any] = {
        key: progress[key] for key in ("fraction", "done", "total", "elapsed_s", "remaining_s") if key in progress
    }
    alive = worker_process(events) is not None
    # The model appears complete or not at all: a worker stopped before it could say "done" was done nevertheless.
    if last["kind"] == "done" or (last["kind"] in ("started", "progress") and not alive and folder.report.is_file()):
        return RunStatus(folder.run_id, "done", **(shown | {"fraction": 1.0, "remaining_s": 0.0}))
    if last["kind"] in ("failed", "cancelled") or not alive:
        shown["resumable"] = has_progress(folder.model)
    if last["kind"] in ("failed", "cancelled"):
        return RunStatus(folder.run_id, last["kind"], message=last.get("message", "Cancelled."), **shown)
    if not alive:
        where = f" at {progress['name']!r}" if progress else ""
        todo = "What it finished is kept: resume it, or start" if shown["resumable"] else "No model was written. Start"
        return RunStatus(
            folder.run_id,
            "died",
            message=f"The worker process vanished{where}; the system may have stopped it for lack of memory. "
            f"{todo} the merge again, with a lower rank if memory is short.",
            **shown,
        )
    return RunStatus(folder.run_id, "running", message=progress.get("name", "Reading the checkpoints"), **shown)


def worker_process(events: list[dict[str, Any]]) -> psutil.Process | None:
    """The living process that the latest "started" event names; None when it is gone or its pid is somebody else's."""
    # The last one: a run whose warm worker was gone already is given to another.
    started = next((event for event in reversed(events) if event["kind"] == "started"), None)
    if started is None:
        return None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(started["pid"])
        if process.create_time() == started["process_started"] and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def identity(process: psutil.Process) -> dict[str, Any]:
    """What the "started" event holds of a worker process."""
    return {"pid": process.pid, "process_started": process.create_time()}
