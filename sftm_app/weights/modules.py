"""Modules of a sentence-transformers folder: modules.json names the parts of the model, in order.

The transformer lies in the folder itself, or in a folder of its own such as 0_Transformer in the older layout. Others,
such as 2_Dense, may have weights too. https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError
from sftm_app.weights.file_names import CONFIG_NAME, INDEX_NAME, MODULES_NAME, WEIGHTS_NAME
from sftm_app.weights.header import open_regular
from sftm_app.weights.shards import refuse_foreign_link

_MAX_BYTES = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True)
class Modules:
    """The folders of a model's modules, below the model's own.

    Attributes:
        main: where the transformer lies; "" for the folder itself.
        others: the other modules that have a folder.
    """

    main: str = ""
    others: tuple[str, ...] = ()


def read_modules(folder: Path) -> Modules:
    """The modules of a folder; without modules.json, the folder itself.

    Raises:
        CheckpointError: modules.json is not a list of modules in plain folders, or a module's folder is missing.
        OSError: it cannot be read.
    """
    file = folder / MODULES_NAME
    if not os.path.lexists(file):
        return Modules()
    refuse_foreign_link(file)
    with os.fdopen(open_regular(file), "rb") as opened:
        raw = opened.read(_MAX_BYTES + 1)
    try:
        listed: Any = json.loads(raw.decode("utf-8")) if len(raw) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CheckpointError(f"{file}: should hold a list of modules. Download it again.")
    paths = [entry.get("path", "") for entry in listed]
    for path in paths:
        if path != "" and (not isinstance(path, str) or not _PLAIN.fullmatch(path)):
            raise CheckpointError(f"{file}: names the folder {str(path)[:80]!r}; only plain names are allowed.")
    own = "" in paths or (folder / CONFIG_NAME).is_file()
    main = "" if own else next((path for path in paths if _holds_model(folder / path)), "")
    return Modules(main, tuple(dict.fromkeys(path for path in paths if path not in ("", main))))


def module_of(name: str, modules: tuple[str, ...]) -> str | None:
    """The module that a tensor belongs to, by its name, which begins with the module's folder; None for the model's."""
    return next((module for module in modules if name.startswith(f"{module}/")), None)


def _holds_model(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file() and any((folder / name).is_file() for name in (WEIGHTS_NAME, INDEX_NAME))
