"""Copies the files of a finished output, and other files of a model."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from sftm_app.errors import CheckpointError
from sftm_app.weights.partial import WORK_FILES

_CHUNK_BYTES = 4 << 20


def list_files(folder: Path) -> dict[Path, int]:
    """List the regular files of a finished output, without links and without the work files of an interrupted run.

    Returns:
        Path relative to the folder -> size in bytes.

    Raises:
        CheckpointError: the folder holds no files, or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(folder, error)

    found: dict[Path, int] = {}
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(place, name) for name in sorted(names)):
            try:
                status = path.lstat()
            except OSError as error:
                raise _unreadable(path, error) from None
            if stat.S_ISREG(status.st_mode) and path.relative_to(folder).as_posix() not in WORK_FILES:
                found[path.relative_to(folder)] = status.st_size
    if not found:
        raise CheckpointError(f"{folder}: holds no files. Merge again.")
    return found


def copy_file(source: Path, target: Path) -> None:
    """Copy one file, and wait until it is on the disk.

    Raises:
        CheckpointError: `source` cannot be read.
        OSError: `target` cannot be written; output_folder turns it into a sentence.
    """
    try:
        reader = open(source, "rb")  # noqa: SIM115 - closed below; here only errors of the source are caught
    except OSError as error:
        raise _unreadable(source, error) from None
    with reader, open(target, "xb") as writer:
        while chunk := _read_chunk(reader, source):
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())


def _read_chunk(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror}). Change its permissions or copy it elsewhere.")
