"""Caches in memory, the place of caches on disk, and atomic writing of small files."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import platformdirs
from cachetools import Cache

from sftm_app.errors import InputError

DIR_VARIABLE = "SFTM_CACHE_DIR"
GB_VARIABLE = "SFTM_CACHE_GB"
DEFAULT_GB = 10.0
TEMPORARY_SUFFIX = ".tmp"

Key = TypeVar("Key")
Value = TypeVar("Value")


def keep(cache: Cache[Key, Value], key: Key, value: Value) -> Value:
    """Put `value` into the cache, unless it is larger than the whole cache, and return it."""
    with contextlib.suppress(ValueError):
        cache[key] = value
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: fill the file that this yields, and it replaces `path` at the end of the block.

    Raises:
        OSError: the file cannot be written; the temporary file is removed then.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Write a text file atomically, over an existing one. Missing folders are created.

    Args:
        path: the file.
        text: its content, written as UTF-8.
        sync: wait until the bytes are on the disk, so that they survive a power failure.

    Raises:
        OSError: the file cannot be written; nothing but the folder is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as temporary, open(temporary, "x", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class CachePlace:
    """Where caches are kept between processes, and how large they may grow."""

    folder: Path
    limit_bytes: int


def cache_place(environment: Mapping[str, str]) -> CachePlace | None:
    """The place that SFTM_CACHE_DIR and SFTM_CACHE_GB (default 10) choose. Touches no disk.

    Returns:
        The place; None where the size is 0 or the user has no home folder.

    Raises:
        InputError: SFTM_CACHE_GB is not a number of gigabytes.
    """
    text = environment.get(GB_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else DEFAULT_GB
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise InputError(f"The size of the factor cache, {text!r}, is not a number of gigabytes. Give one such as 10.")
    try:
        chosen = environment.get(DIR_VARIABLE)
        folder = Path(chosen).expanduser().absolute() if chosen else default_folder()
    except RuntimeError:  # the user has no home folder
        return None
    return CachePlace(folder, int(gigabytes * 1e9)) if gigabytes else None


def default_folder() -> Path:
    """Our folder among the user's caches, by the custom of the system. Raises RuntimeError without a home folder."""
    return platformdirs.user_cache_path("sftm-studio", appauthor=False, opinion=False) / "factors"
