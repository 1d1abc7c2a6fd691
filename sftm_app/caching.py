"""Caches: in memory with a size limit, where what does not fit is handed back all the same; and their place on disk."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cachetools import Cache

from sftm_app.errors import InputError

DIR_VARIABLE = "SFTM_CACHE_DIR"
GB_VARIABLE = "SFTM_CACHE_GB"
DEFAULT_GB = 10.0

Key = TypeVar("Key")
Value = TypeVar("Value")


def keep(cache: Cache[Key, Value], key: Key, value: Value) -> Value:
    """Put `value` into the cache if it fits there at all, and return it."""
    with contextlib.suppress(ValueError):
        cache[key] = value
    return value


def write_text(path: Path, text: str) -> None:
    """Write what can be made again: complete or not at all, over what stands there. Nothing waits for the disk.

    Raises OSError; nothing is left behind then but the folder.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:  # on a full disk
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class CachePlace:
    """A folder for what is worth keeping between processes, and how many bytes of it."""

    folder: Path
    limit_bytes: int


def cache_place(environment: Mapping[str, str] = os.environ) -> CachePlace | None:
    """The place that SFTM_CACHE_DIR and SFTM_CACHE_GB (default 10; 0 = none) ask for. Touches no disk.

    Raises
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
        given = environment.get(DIR_VARIABLE)
        folder = Path(given).expanduser().absolute() if given else default_folder(environment)
    except RuntimeError:  # nobody's home is known
        return None
    return CachePlace(folder, int(gigabytes * 1e9)) if gigabytes else None


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's folder for caches, by the system's custom, and in it ours. Raises RuntimeError without a home."""
    if sys.platform == "win32" and environment.get("LOCALAPPDATA"):
        base = Path(environment["LOCALAPPDATA"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        given = Path(environment.get("XDG_CACHE_HOME", ""))
        base = given if given.is_absolute() else Path.home() / ".cache"
    return base / "sftm-studio" / "factors"
