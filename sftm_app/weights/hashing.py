"""Hashes of a checkpoint's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

from sftm_app.errors import CheckpointError
from sftm_app.linalg.parallel import n_processors
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp

_CHUNK_BYTES = 1 << 18
_MAX_THREADS = 8


# Takes a file's path, its stamp and a function that computes its hash; answers from a cache or calls the function.
HashCache = Callable[[Path, FileStamp, Callable[[], str]], str]


def hash_files(
    checkpoint: Checkpoint, stop: Callable[[], bool] = lambda: False, keep: HashCache | None = None
) -> dict[str, str]:
    """Hash the bytes that the checkpoint was opened with.

    Args:
        checkpoint: its weight files are hashed; for an adapter its config too.
        stop: polled while a file is read; hashing ends when it returns True.
        keep: a cache for the hashes, if any.

    Returns:
        The SHA-256 of every file in hexadecimal, by the file's path in the checkpoint.

    Raises:
        CheckpointError: a file changed since the checkpoint was opened, or cannot be read.
        CancelledError: `stop` returned True.
    """
    hashes = {}
    for path, stamp in sorted(checkpoint.stamps.items()):
        compute = partial(_hash, path, stamp, stop)
        inside = path.is_relative_to(checkpoint.path)
        name = path.relative_to(checkpoint.path).as_posix() if inside and path != checkpoint.path else path.name
        hashes[name] = keep(path, stamp, compute) if keep else compute()
    refuse_changed(checkpoint)
    return hashes


def _hash(path: Path, stamp: FileStamp, stop: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    # One buffer for the whole file: a new one per chunk would be allocated and freed each time.
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with open(path, "rb", buffering=0) as file:
            while n_read := file.readinto(chunk):
                digest.update(chunk[:n_read])
                if stop():
                    raise CancelledError
            changed = FileStamp.of(file.fileno()) != stamp
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Start again.") from None
    if changed:
        raise _changed(path)
    return digest.hexdigest()


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError if a file changed since the checkpoint was opened."""
    for path, stamp in sorted(checkpoint.stamps.items()):
        try:
            changed = FileStamp.of(path) != stamp
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Start again.") from None
        if changed:
            raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: was changed while in use. Start again.")


def hashing_threads() -> int:
    """How many files are hashed at a time."""
    return min(_MAX_THREADS, n_processors())
