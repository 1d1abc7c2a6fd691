"""Caches architectures in memory and on disk: asking transformers takes seconds, mostly for its imports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from cachetools import LRUCache

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.as_json import architecture_from_json, architecture_to_json
from sftm_app.architecture.builder import ArchitectureBuilder
from sftm_app.caching import write_text

FOLDER_NAME = "architectures"
MAX_IN_MEMORY = 32
MAX_FILES = 256
# Config entries about the checkpoint's history. Nothing depends on them.
_HISTORY = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


class ArchitectureCache:
    """Answers as read_architecture() does, from memory or from files where it was asked the same before.

    An entry's key covers everything that an answer depends on: the config, the names, the versions of transformers and
    torch, and the source of this room. A damaged file is replaced; one that cannot be written is skipped. Threads may
    share a cache.

    Args:
        folder: where to keep files, shared by all processes; None keeps answers in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: LRUCache[str, Architecture] = LRUCache(MAX_IN_MEMORY)
        self._lock = Lock()
        self._builder = ArchitectureBuilder()

    def read(
        self, config: dict[str, Any], names: Iterable[str] = (), untied: frozenset[str] = frozenset()
    ) -> Architecture:
        """Answer as read_architecture() does for the same arguments. The answer is shared: do not change it."""
        names = sorted(names)
        question = json.dumps({key: value for key, value in config.items() if key not in _HISTORY})
        key = hashlib.sha256(json.dumps([self._sources, question, names, sorted(untied)]).encode()).hexdigest()
        path = self._folder / f"{key}.json" if self._folder else None
        with self._lock:
            found = self._known.get(key)
        if found is None and path is not None:
            found = _load(path)
        if found is None:
            found = self._builder.read(json.loads(question), names, untied)
            if path is not None:
                _store(path, found)
        with self._lock:
            self._known[key] = found
        return found

    @cached_property
    def _sources(self) -> list[str]:
        """What an answer depends on, apart from the question."""
        files = sorted(Path(__file__).parent.glob("*.py"))
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return [*hashes, version("transformers"), version("torch")]


def _load(path: Path) -> Architecture | None:
    try:
        found = architecture_from_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


def _store(path: Path, found: Architecture) -> None:
    """Write an entry; when there are too many, remove those that were used longest ago."""
    with contextlib.suppress(OSError):
        write_text(path, architecture_to_json(found))
        files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for old in files[:-MAX_FILES]:
            old.unlink(missing_ok=True)
