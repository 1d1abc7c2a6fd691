"""Caches with a size limit. What does not fit is handed back all the same, it is only not kept."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from cachetools import Cache

Key = TypeVar("Key")
Value = TypeVar("Value")


def keep(cache: Cache[Key, Value], key: Key, value: Value) -> Value:
    """Put `value` into the cache if it fits there at all, and return it."""
    with contextlib.suppress(ValueError):
        cache[key] = value
    return value
