"""What exactly a checkpoint's files hold, in a few letters."""

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
from sftm_app.weights.stamps import lasting_name

_CHUNK_BYTES = 1 << 18


def hash_files(
    checkpoint: Checkpoint,
    stop: Callable[[], bool] = lambda: False,
    recall: Callable[[str, Callable[[], str]], str] | None = None,
) -> dict[str, str]:
    """SHA-256 of every weight file, by its name: of the bytes that the checkpoint was opened with.

    stop: asked now and then whether nobody waits any more. recall: gives what was once made for the same first
    argument, such as the hash of a file that was not touched since, or else what the second one makes.

    Raises
        CheckpointError: a file changed since then or cannot be read.
        CancelledError: it was to stop.
    """
    hashes = {}
    for path, stamp in sorted(checkpoint.stamps.items()):
        about = hash_name(path, stamp)
        make = partial(_hash, path, stamp, stop)
        hashes[path.name] = make() if recall is None or about is None else recall(about, make)
    refuse_changed(checkpoint)
    return hashes


def hash_name(path: Path, stamp: FileStamp) -> str | None:
    """What the hash of this file may be remembered under, see lasting_name()."""
    name = lasting_name(path, stamp)
    return None if name is None else f"SHA-256 of {name}"


def _hash(path: Path, stamp: FileStamp, stop: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    # One buffer for all of it: a new one for each chunk would be memory asked of the system and given back.
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
    """Raises CheckpointError when a file is no longer the one that the checkpoint was opened with."""
    for path, stamp in sorted(checkpoint.stamps.items()):
        try:
            changed = FileStamp.of(path) != stamp
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Start again.") from None
        if changed:
            raise _changed(path)


def _changed(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: was changed while in use. Start again.")


MAX_HASHING = 8


def hashing_threads() -> int:
    """How many files are hashed at a time."""
    return min(MAX_HASHING, n_processors())
