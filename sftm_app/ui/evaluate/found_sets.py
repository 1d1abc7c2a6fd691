"""Sets of labelled samples to pick from: files and folders below the folders that the app may read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sftm_app.errors import SFTMError
from sftm_app.evaluation.text_files import TEXT_ENDINGS
from sftm_app.ui.evaluate.uploads import FOLDER
from sftm_app.ui.settings import Settings, allowed
from sftm_app.ui.workspace import Workspace

MAX_DEPTH, MAX_SCANNED, MOST_OFFERED = 3, 5000, 50
# JSON files next to weights describe a model; as samples they are found in a folder, by a task's name.
TABLES = tuple(ending for ending in TEXT_ENDINGS if ending != ".json")


def sample_choices(settings: Settings, ws: Workspace) -> list[tuple[str, str]]:
    """Files of labelled texts, and folders that hold samples named after a task: the name to show, and the path."""
    roots = (*settings.models_dirs, settings.output_dir / FOLDER)
    found = dict.fromkeys(path for root in roots for path in _below(root, set(ws.task_names)))
    shown = []
    for path in list(found)[:MOST_OFFERED]:
        with contextlib.suppress(SFTMError):
            full, root = allowed(settings, str(path)), settings.models_dir
            shown.append((str(path.relative_to(root)) if root in path.parents else path.name, str(full)))
    return shown


def _below(root: Path, tasks: set[str]) -> Iterator[Path]:
    level, n_scanned = [root], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Path] = []
        for folder in level:
            n_scanned += 1
            if n_scanned > MAX_SCANNED:
                return
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            folders = [e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
            if _is_set(entries, folders, tasks):
                yield folder
                continue
            yield from (Path(e.path) for e in entries if e.is_file() and e.name.lower().endswith(TABLES))
            inner += [Path(entry.path) for entry in folders]
        level = inner


def _is_set(entries: list[os.DirEntry[str]], folders: list[os.DirEntry[str]], tasks: set[str]) -> bool:
    """Whether a folder holds texts or images of a task. A task's checkpoint, which holds files, does not count."""
    named = {entry.name for entry in entries if entry.is_file()}
    if any(f"{task}{ending}" in named for task in tasks for ending in TEXT_ENDINGS):
        return True
    for folder in folders:
        if folder.name in tasks:
            with contextlib.suppress(OSError):
                inside = list(os.scandir(folder.path))
                if inside and all(entry.is_dir() for entry in inside):
                    return True
    return False
