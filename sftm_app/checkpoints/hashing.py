"""What exactly a checkpoint's files hold, in a few letters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

from sftm_app.checkpoints.checkpoint import Checkpoint
from sftm_app.checkpoints.header import FileStamp
from sftm_app.errors import CheckpointError

_CHUNK_BYTES = 1 << 20


def hash_files(checkpoint: Checkpoint, stop: Callable[[], bool] = lambda: False) -> dict[str, str]:
    """SHA-256 of every weight file, by its name: of the bytes that the checkpoint was opened with.

    stop: asked now and then whether nobody waits any more.

    Raises
        CheckpointError: a file changed since then or cannot be read.
        CancelledError: it was to stop.
    """
    hashes = {}
    for path, stamp in sorted(checkpoint.stamps.items()):
        digest = hashlib.sha256()
        try:
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    if stop():
                        raise CancelledError
                changed = FileStamp.of(file.fileno()) != stamp
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Start again.") from None
        if changed:
            raise _changed(path)
        hashes[path.name] = digest.hexdigest()
    refuse_changed(checkpoint)
    return hashes


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
