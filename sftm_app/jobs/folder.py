"""The folder of a run: its recipe, its events, and its model."""

from __future__ import annotations

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from sftm_app.errors import JobError
from sftm_app.jobs.events import MAX_EVENTS_BYTES, Event, append_event, read_events
from sftm_app.planning.recipe import Recipe, load_recipe, recipe_to_yaml
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.regular import open_file

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
RECIPE_NAME = "recipe.yaml"
EVENTS_NAME = "events.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The merged model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The report in the merged model."""
        return self.model / REPORT_NAME

    @property
    def cancel_flag(self) -> Path:
        """A file that asks the worker to stop."""
        return self.path / "cancel"

    @property
    def events_file(self) -> Path:
        """The events, one JSON object per line."""
        return self.path / EVENTS_NAME

    def recipe(self) -> Recipe:
        """The recipe. Raises RecipeError: it cannot be read."""
        return load_recipe(self.path / RECIPE_NAME)

    def append(self, event: Event) -> None:
        """Add an event."""
        append_event(self.events_file, event)

    def events(self) -> list[Event]:
        """All events so far."""
        return read_events(self.events_file)


def create_run(runs_root: Path, recipe: Recipe) -> RunFolder:
    """Make a new run folder with its recipe.

    Raises:
        JobError: the folder cannot be written.
    """
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = RunFolder(runs_root / run_id)
    try:
        folder.path.mkdir(parents=True)
        (folder.path / RECIPE_NAME).write_text(recipe_to_yaml(recipe), encoding="utf-8")
    except OSError as error:
        raise JobError(f"{runs_root}: cannot be written ({error.strerror}). Start with another --output-dir.") from None
    return folder


def open_run(runs_root: Path, run_id: str) -> RunFolder:
    """The folder of an existing run. The id may come from a browser, so it is checked.

    Raises:
        JobError: there is no such run.
    """
    folder = RunFolder(runs_root / run_id)
    if not RUN_ID.fullmatch(run_id) or not os.path.isdir(folder.path) or not _is_readable(folder.path):
        raise JobError(f"There is no run {run_id[:80]!r}. Choose one from the list.")
    return folder


def list_runs(runs_root: Path) -> list[RunFolder]:
    """Every run that this user may read, newest first.

    Raises:
        JobError: this user may not read `runs_root`.
    """
    try:
        names = sorted((name for name in os.listdir(runs_root) if RUN_ID.fullmatch(name)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise JobError(f"{runs_root}: cannot be read ({error.strerror}). Start with another --output-dir.") from None
    return [RunFolder(runs_root / name) for name in names if _is_readable(runs_root / name)]


def _is_readable(folder: Path) -> bool:
    """Whether a run's files can be read. Otherwise the run is left out, and does not make every list fail."""
    if folder.is_symlink():
        return False
    try:
        os.close(open_file(folder / EVENTS_NAME))
    except FileNotFoundError:
        return folder.is_dir()
    except OSError:
        return False
    return (folder / EVENTS_NAME).stat().st_size <= MAX_EVENTS_BYTES
