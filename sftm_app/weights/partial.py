"""The folder in which an output is made: whose it is, and what of it belongs to the work and not to the output."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from sftm_app.errors import OutputError

LOCK_NAME = "lock.json"
PROGRESS_NAME = "progress.jsonl"
# The lock goes last: a partial folder without one is not ours and is never removed.
WORK_FILES = (PROGRESS_NAME, LOCK_NAME)


def partial_of(output: Path) -> Path:
    """Where `output` is made: `<output>.partial` beside it."""
    return output.with_name(output.name + ".partial")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No two processes or threads are inside this block for the same folder at once, where the system can see to it."""
    with ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Closing alone would not do while a process that was forked meanwhile holds the folder open too.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield


def claim(partial: Path, keep: bool) -> None:
    """Make `partial` this process's own: new and empty, or with `keep` holding what a run that died left in it.

    Raises
        OutputError: another run is writing it, or it was not left by one.
        OSError: it cannot be made.
    """
    with alone(partial.parent):
        refuse_taken(partial)
        if not keep:
            remove_partial(partial)
        partial.mkdir(exist_ok=keep)
        process = psutil.Process()
        lock = {"pid": process.pid, "started": process.create_time()}
        (partial / LOCK_NAME).write_text(json.dumps(lock), encoding="utf-8")


def refuse_taken(partial: Path) -> None:
    """Raises OutputError when a living run is writing `partial`, or when it is a folder that no run has left."""
    if not partial.is_dir():
        return
    lock = partial / LOCK_NAME
    if not lock.exists() and any(partial.iterdir()):
        raise OutputError(
            f"{partial}: exists and was not left by a merge. Remove it yourself, or choose another output folder."
        )
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        held = json.loads(lock.read_text(encoding="utf-8"))
        if psutil.Process(int(held["pid"])).create_time() == held["started"]:
            raise OutputError(f"{partial}: another run is writing it. Wait for it, or choose another output folder.")


def remove_partial(partial: Path) -> None:
    """Remove what is there, the lock last, so that a process killed meanwhile leaves nothing that nobody owns.

    Raises
        OSError: something cannot be removed.
    """
    if partial.is_dir():
        clear(partial, keep=(LOCK_NAME,))
        shutil.rmtree(partial)


def clear(partial: Path, keep: Collection[str]) -> None:
    """Remove all but the names in `keep`, first what tells how far a run was. Raises OSError."""
    for child in sorted(partial.iterdir(), key=lambda child: child.name != PROGRESS_NAME):
        if child.name in keep:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def held_bytes(partial: Path) -> int:
    """The disk space that files there take: what was reserved counts, holes do not. 0 where the system cannot say."""
    total = 0
    for folder, _, names in os.walk(partial):
        for name in names:
            with contextlib.suppress(OSError):
                total += getattr(os.lstat(os.path.join(folder, name)), "st_blocks", 0) * 512
    return total
