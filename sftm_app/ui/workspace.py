"""The workspace: what is merged. Kept in a small file, so that a reload, a second tab and a restart show the same."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sftm_app.planning.recipe import TaskEntry, default_name

WORKSPACE_NAME = "workspace.json"


@dataclass(frozen=True)
class Workspace:
    """Base and tasks by absolute paths; an empty base means that nothing is loaded.

    fingerprint: of the files when they were loaded, so that loading retrained checkpoints is a change. roles: what the
    person says that tensors are, as in Recipe.
    """

    base: str = ""
    tasks: tuple[TaskEntry, ...] = ()
    fingerprint: str = ""
    roles: tuple[tuple[str, str], ...] = ()

    @property
    def ready(self) -> bool:
        return bool(self.base and self.tasks)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of base and tasks."""
        return self.base, *(task.path for task in self.tasks)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)


def make_workspace(base: Path, tasks: list[Path]) -> Workspace:
    """A workspace with names taken from the folders and weights of one."""
    entries: list[TaskEntry] = []
    for path in tasks:
        entries.append(TaskEntry(str(path), default_name(path, {entry.name for entry in entries})))
    return Workspace(str(base), tuple(entries))


def store(output_dir: Path, workspace: Workspace) -> None:
    """Remember the workspace. A failure to write costs only the memory, so it is not reported."""
    with contextlib.suppress(OSError):
        temporary = output_dir / f"{WORKSPACE_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(workspace)), encoding="utf-8")
        temporary.replace(output_dir / WORKSPACE_NAME)


def restore(output_dir: Path) -> Workspace:
    """The workspace last remembered; an empty one when there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads((output_dir / WORKSPACE_NAME).read_text(encoding="utf-8"))
        tasks = tuple(TaskEntry(**task) for task in value["tasks"])
        roles = tuple((str(pattern), str(role)) for pattern, role in value.get("roles", ()))
        return Workspace(str(value["base"]), tasks, str(value["fingerprint"]), roles)
    return Workspace()
