"""More folders where checkpoints are searched, added in the app. Each lies in one that was allowed at the start."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from sftm_app.caching import write_text
from sftm_app.errors import InputError
from sftm_app.ui.settings import Settings, allowed
from sftm_app.weights.regular import read_file

FOLDERS_NAME = "folders.json"
MOST_FOLDERS = 32


def added_folders(settings: Settings) -> list[Path]:
    """The folders that were added and are still there, and still allowed."""
    found: list[Path] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        stored = json.loads(read_file(settings.output_dir / FOLDERS_NAME))
        for text in stored if isinstance(stored, list) else ():
            with contextlib.suppress(InputError):
                found.append(_folder(settings, str(text)))
    return found


def set_folders(settings: Settings, texts: Sequence[str]) -> list[Path]:
    """Search in these folders besides those given at the start.

    Raises:
        InputError: one is not a folder, or lies outside of those given at the start; nothing is changed.
    """
    if len(texts) > MOST_FOLDERS:
        raise InputError(f"{len(texts)} folders are given, at most {MOST_FOLDERS} can be added. Add one above them.")
    folders = list(dict.fromkeys(_folder(settings, text) for text in texts))
    file = settings.output_dir / FOLDERS_NAME
    try:
        write_text(file, json.dumps([str(folder) for folder in folders]))
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}). Free some space.") from None
    return folders


def _folder(settings: Settings, text: str) -> Path:
    folder = allowed(settings, text)
    if not folder.is_dir():
        raise InputError(f"{text.strip()[:200]}: there is no such folder. Paste the path of one with checkpoints.")
    return folder
