"""The folder in which an output is made. It is renamed once complete, so an output appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from sftm_app.caching import write_text
from sftm_app.errors import OutputError, ResourceError
from sftm_app.units import format_distinct
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.regular import read_file

LOCK_NAME = "lock.json"
PROGRESS_NAME = "progress.jsonl"
_FULL = (28, 122)  # ENOSPC, EDQUOT
# Files of the run, not of the output.
WORK_FILES = (PROGRESS_NAME, LOCK_NAME)


def partial_of(output: Path) -> Path:
    """Where `output` is made: `<output>.partial` next to it."""
    return output.with_name(output.name + ".partial")


@contextmanager
def output_folder(path: Path, resume: bool = False, replace: bool = False) -> Iterator[Path]:
    """Make an output: yields `<path>.partial`, and renames it to `path` at the end of the block.

    On any error the partial folder is removed, and what was at `path` is there as before.

    Args:
        path: the output; must not exist, unless it is replaced.
        resume: start with what an interrupted run left in the partial folder, instead of an empty one.
        replace: put what exists at `path` aside, as `<path>.replaced`, when the new one is complete.

    Raises:
        OutputError: `path` exists or cannot be written, or another run is writing it.
        ResourceError: the disk is full.
    """
    partial = partial_of(path)
    restore_replaced(path)
    if not replace:
        refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _claim(partial, resume)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.rmdir()  # only if it is empty
        raise _disk_error(path, error) if error.errno in _FULL else _not_writable(path, error) from None
    try:
        yield partial
        sync_folder(partial)
        with folder_lock(path.parent):
            _give_name(partial, path, replace)
        # The output is complete now: a failure from here on must not look like a failed merge.
        with contextlib.suppress(OSError):
            sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_partial(partial)
        if isinstance(error, OSError):
            raise _disk_error(path, error) from None
        raise


def _give_name(partial: Path, path: Path, replace: bool) -> None:
    """Rename a complete output. Its work files go first, so that none is ever in an output.

    Raises:
        OutputError: something exists at `path` by now.
        OSError: the disk failed; what was at `path` is there.
    """
    if not replace:
        # rename() silently replaces an empty folder, so check again just before it.
        refuse_existing(path)
    for name in WORK_FILES:
        (partial / name).unlink(missing_ok=True)
    if replace and os.path.lexists(path):
        path.rename(replaced_of(path))
    try:
        partial.rename(path)
    except OSError:
        restore_replaced(path)
        raise


def replaced_of(output: Path) -> Path:
    """Where the output that is replaced lies until the new one has its name."""
    return output.with_name(output.name + ".replaced")


def restore_replaced(path: Path) -> None:
    """Give an output its name back that a killed run put aside, if no new one took its place."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(path) and replaced_of(path).is_dir():
            replaced_of(path).rename(path)


def refuse_existing(path: Path) -> None:
    """Raise OutputError if something exists at `path`."""
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists already. Choose another output folder, or remove it first.")


def check_disk_space(path: Path, n_bytes: int) -> None:
    """Refuse an output that the disk has no room for. What an interrupted run left there counts as free.

    Raises:
        OutputError: the place cannot be accessed.
        ResourceError: fewer than `n_bytes` are free.
    """
    try:
        existing = next(parent for parent in path.resolve().parents if parent.exists())
        free = shutil.disk_usage(existing).free + _allocated_bytes(partial_of(path))
    except OSError as error:
        raise _not_writable(path, error) from None
    if free < n_bytes:
        needed, left = format_distinct(n_bytes, free)
        raise ResourceError(
            f"{path}: needs {needed}, but the disk has {left} free. Free some space or choose another output folder."
        )


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.")


def _disk_error(path: Path, error: OSError) -> Exception:
    if error.errno in _FULL:
        return ResourceError(f"{path}: the disk is full. Free some space or choose another output folder.")
    return OutputError(f"{path}: writing failed ({error.strerror or error}). Choose another output folder.")


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock an existing folder against other threads and processes, where the system can.

    The folder itself is locked, so no lock file is left behind, and a read-only folder can be locked too.
    """
    with ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # Windows has none

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Closing is not enough: a process forked meanwhile holds the descriptor open too.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield


def _claim(partial: Path, resume: bool) -> None:
    """Make `partial` this process's own: new and empty, or with what an interrupted run left in it.

    Raises:
        OutputError: another run is writing it, or no run left it.
        OSError: it cannot be created.
    """
    with folder_lock(partial.parent):
        refuse_in_use(partial)
        if not resume:
            remove_partial(partial)
        partial.mkdir(exist_ok=resume)
        write_lock(partial / LOCK_NAME)


def write_lock(lock: Path) -> None:
    """Write a lock file that names this process. Raises OSError."""
    process = psutil.Process()
    write_text(lock, json.dumps({"pid": process.pid, "started": process.create_time()}), sync=True)


@dataclass(frozen=True)
class Owner:
    """The process that a lock file names."""

    pid: int
    started: float

    @property
    def runs(self) -> bool:
        """Whether it still runs. A later process with the same number started at another time."""
        with contextlib.suppress(psutil.Error):
            return bool(psutil.Process(self.pid).create_time() == self.started)
        return False


def owner_of(lock: Path) -> Owner | None:
    """Who wrote a lock file; None where there is none, or something else under its name."""
    try:
        value = json.loads(b"" if lock.is_symlink() else read_file(lock, 4096))
        pid, started = value["pid"], value["started"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 2**31 or not isinstance(started, int | float):
        return None
    return Owner(pid, started)


def is_live(lock: Path) -> bool:
    """Whether the process that wrote a lock file still runs; False without a lock."""
    owner = owner_of(lock)
    return owner is not None and owner.runs


def refuse_in_use(partial: Path) -> None:
    """Raise OutputError if a live run is writing `partial`, or if it is something that no run left."""
    if not os.path.lexists(partial):
        return
    if not _is_left(partial):
        raise OutputError(
            f"{partial}: exists and was not left by a merge. Remove it yourself, or choose another output folder."
        )
    if is_live(partial / LOCK_NAME):
        raise OutputError(f"{partial}: another run is writing it. Wait for it, or choose another output folder.")


def _is_left(partial: Path) -> bool:
    """Whether a run made this folder: it holds a lock, nothing yet, or a complete output that only lacks its name."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    # A run that died while it wrote its lock left a part of that, under a name of its own.
    begun = all(child.name.startswith(f"{LOCK_NAME}.") for child in partial.iterdir())
    return begun or owner_of(partial / LOCK_NAME) is not None or (partial / REPORT_NAME).is_file()


def remove_partial(partial: Path) -> None:
    """Remove a folder that a run made, its lock last, so that an interrupted removal can be repeated.

    Links are removed, and never followed. Raises OSError.
    """
    if os.path.lexists(partial) and _is_left(partial):
        clear(partial, keep=(LOCK_NAME, REPORT_NAME))
        shutil.rmtree(partial)


def clear(partial: Path, keep: Collection[str]) -> None:
    """Remove everything but the names in `keep`; the record of progress goes first. Raises OSError."""
    for child in sorted(partial.iterdir(), key=lambda child: child.name != PROGRESS_NAME):
        if child.name in keep:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _allocated_bytes(partial: Path) -> int:
    """The disk space of the files in a folder: reserved space counts, holes do not. 0 where the system cannot tell."""
    total = 0
    for folder, _, names in os.walk(partial):
        for name in names:
            with contextlib.suppress(OSError):
                total += getattr(os.lstat(os.path.join(folder, name)), "st_blocks", 0) * 512
    return total
