"""The folder of uploaded files: private, and emptied of what is old or was never finished."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from sftm_app.errors import OutputError

FOLDER = "uploads"
KEPT_S = 24 * 3600
UNFINISHED_S = 3600
# Gradio puts a file into a folder named after the hash of its content, and writes it under a temporary name before.
_FOLDER_NAME = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_NAME = re.compile(r"tmp[a-z0-9_]{8}")


def make_uploads(output_dir: Path) -> Path:
    """The folder for uploads, which no other user of the machine may look into. What is old in it is removed.

    Raises:
        OutputError: it cannot be made, or is a link.
    """
    folder = output_dir / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise OutputError(f"{folder}: is a link. Put a folder in its place, or give another --output-dir.")
        folder.chmod(0o700)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}). Give another --output-dir.") from None
    remove_old(folder, time.time())
    return folder


def keep_tidy(folder: Path, stop: threading.Event) -> None:
    """Remove what is old once an hour, until `stop` is set. For a thread of its own."""
    while not stop.wait(UNFINISHED_S):
        remove_old(folder, time.time())


def remove_old(folder: Path, now: float) -> None:
    """Remove uploads of yesterday, and those that broke off an hour ago; nothing else, and nothing behind a link.

    Args:
        folder: where uploads lie.
        now: the time, in seconds since 1970.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and _FOLDER_NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    for inner in os.scandir(path):
                        if now - inner.stat(follow_symlinks=False).st_mtime > KEPT_S:
                            os.unlink(inner.path)
                    if age > UNFINISHED_S:
                        path.rmdir()  # only if it is empty
            elif entry.is_file(follow_symlinks=False) and _TEMPORARY_NAME.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if now - entry.stat(follow_symlinks=False).st_mtime > UNFINISHED_S:
                        path.unlink()
