"""The workspace: what is merged. A small file stores it, so that a reload, a second tab and a restart show the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sftm_app.caching import write_text
from sftm_app.errors import RecipeError
from sftm_app.planning.recipe import TaskEntry, check_tokenizer, default_name
from sftm_app.weights.header import FileStamp
from sftm_app.weights.regular import read_file

WORKSPACE_NAME = "workspace.json"


@dataclass(frozen=True)
class Workspace:
    """Base and tasks by absolute paths. Nothing is loaded while the base is empty.

    Attributes:
        fingerprint: of the files when they were loaded, so that loading retrained checkpoints counts as a change.
        roles: the roles of tensors that the person set, as in Recipe.
        tokenizer: whose tokenizer the merged model has, as in Recipe.
        asked: what the address or the recipe that was opened asks of the tabs, see keeping.Part: (part, text).
        visit: another number each time that an address is opened, so that the same one can be opened again.
    """

    base: str = ""
    tasks: tuple[TaskEntry, ...] = ()
    fingerprint: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    tokenizer: str | None = None
    asked: tuple[tuple[str, str], ...] = ()
    visit: int = 0

    @property
    def ready(self) -> bool:
        """Whether a base and at least one task are loaded."""
        return bool(self.base and self.tasks)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of base and tasks."""
        return self.base, *(task.path for task in self.tasks)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names."""
        return tuple(task.name for task in self.tasks)

    @property
    def weights(self) -> tuple[float, ...]:
        """The tasks' weights."""
        return tuple(task.weight for task in self.tasks)


def make_workspace(base: Path, tasks: list[Path]) -> Workspace:
    """A workspace whose tasks are named after their folders and have weight 1."""
    entries: list[TaskEntry] = []
    for path in tasks:
        entries.append(TaskEntry(str(path), default_name(path, {entry.name for entry in entries})))
    return Workspace(str(base), tuple(entries))


def fingerprint(workspace: Workspace) -> str:
    """Changes whenever a file in the workspace's folders is written, replaced, added or removed."""
    found: list[tuple[str, FileStamp | None]] = []
    for path in workspace.inputs:
        # The neighbours of a weight file may be further parts of it.
        folder = os.path.dirname(path) if os.path.isfile(path) else path
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                found.append((entry.name, FileStamp.of(entry.path)))
        found.append((path, None))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def store(output_dir: Path, workspace: Workspace) -> None:
    """Remember the workspace. If that fails, the next start only opens with nothing loaded; so it is not reported."""
    with contextlib.suppress(OSError):
        write_text(output_dir / WORKSPACE_NAME, json.dumps(asdict(replace(workspace, asked=(), visit=0))))


def restore(output_dir: Path) -> Workspace:
    """The workspace stored last; an empty one if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, RecipeError):
        value = json.loads(read_file(output_dir / WORKSPACE_NAME))
        tasks = tuple(TaskEntry(**task) for task in value["tasks"])
        roles = tuple((str(pattern), str(role)) for pattern, role in value.get("roles", ()))
        tokenizer = value.get("tokenizer")
        check_tokenizer(tokenizer, [task.name for task in tasks])
        return Workspace(str(value["base"]), tasks, str(value["fingerprint"]), roles, tokenizer)
    return Workspace()
