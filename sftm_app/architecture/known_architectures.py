"""What read_architecture found before, in this process and on disk: asking transformers takes seconds, mostly imports.

An entry is addressed by all that an answer follows from: the config, the names, the versions of transformers and torch,
and the source of the files here that ask. One that is damaged is asked for again, and one that cannot be written is not
kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sftm_app.architecture import architecture, fused, owners
from sftm_app.architecture.architecture import Architecture, read_architecture
from sftm_app.architecture.fused import Fused
from sftm_app.architecture.owners import Owner
from sftm_app.caching import cache_place, write_text

FOLDER_NAME = "architectures"
KEPT_MAX = 256
# What a config says of its history, on which nothing depends.
_HISTORY = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


def known_architecture(
    config: dict[str, Any], names: Iterable[str] = (), apart: frozenset[str] = frozenset()
) -> Architecture:
    """The same as read_architecture() of the same arguments, and raises the same; see there. Not to be changed."""
    told = json.dumps({key: value for key, value in config.items() if key not in _HISTORY})
    return _known(told, tuple(sorted(names)), apart)


@lru_cache(maxsize=32)
def _known(config: str, names: tuple[str, ...], apart: frozenset[str]) -> Architecture:
    place = cache_place()
    if place is None:
        return read_architecture(json.loads(config), names, apart)
    asked = json.dumps([_asking(), config, names, sorted(apart)]).encode()
    path = place.folder / FOLDER_NAME / f"{hashlib.sha256(asked).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        known = _parse(json.loads(path.read_bytes()))
        with contextlib.suppress(OSError):
            os.utime(path)
        return known
    found = read_architecture(json.loads(config), names, apart)
    _write(path, json.dumps(asdict(found) | {"keys": sorted(found.keys)}))
    return found


@lru_cache(maxsize=1)
def _asking() -> list[str]:
    """What an answer depends on besides the question."""
    files = [Path(str(module.__file__)) for module in (architecture, fused, owners)]
    sources = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return [*sources, version("transformers"), version("torch")]


def _parse(values: dict[str, Any]) -> Architecture:
    owners = {name: _owner(**owner) for name, owner in values["owners"].items()}
    return Architecture(**values | {"owners": owners, "keys": frozenset(values["keys"])})


def _owner(fused: dict[str, Any] | None, **values: Any) -> Owner:
    return Owner(**values, fused=Fused(tuple(fused["labels"]), tuple(fused["sizes"])) if fused else None)


def _write(path: Path, text: str) -> None:
    """Those that were used longest ago go when there are too many."""
    with contextlib.suppress(OSError):
        write_text(path, text)
        kept = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for old in kept[:-KEPT_MAX]:
            old.unlink(missing_ok=True)
