"""Opens regular files only: a pipe would wait for ever, and a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_BYTES = 64 << 20


def open_file(path: Path) -> int:
    """Open a regular file for reading, without ever waiting, and return its descriptor.

    Raises:
        OSError: it cannot be opened; EINVAL where it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Raises:
        OSError: it cannot be read; EINVAL where it is no regular file, EFBIG where it holds more than `max_bytes`.
        ValueError: the path holds a null byte.
    """
    with os.fdopen(open_file(path), "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes} bytes", str(path))
    return raw


def is_path(text: str) -> bool:
    """Whether a text can be a path. Half a surrogate pair has no form in UTF-8, so it could not even be shown."""
    halves = not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
    return text != "" and "\0" not in text and not halves
