"""Bounds on what a config.json may ask for, checked before anything is made of it.

A size in a config decides how long a loop of a library runs and how much memory it takes: a billion layers, or a name
for each of a hundred million classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError

# A list takes about sixty bytes, so these bound what a file takes as values. An index or a report holds fewer.
MAX_CONTAINERS = 1_000_000
MAX_VALUES = 4_000_000
MAX_DEPTH = 40
MAX_LAYERS = 2_000
MAX_LABELS = 1_000_000
MAX_SIZE = 2**40
_LAYERS = re.compile(
    r"(?:num_|n_)?(?:\w*_)?(?:layers?|depths?)|(?:num_|n_)\w*(?:blocks|stages|experts|heads|codebooks|groups)"
)
_LABELS = re.compile(r"(?:num_|n_)\w*(?:labels|classes)")


def refuse_large_json(path: Path, raw: bytes) -> None:
    """Refuse the text of a JSON file that would take far more memory as values: millions of lists or numbers.

    Raises:
        CheckpointError: it holds too many.
    """
    # Those in texts count too.
    for what, found, limit in (
        ("lists and tables", raw.count(b"[") + raw.count(b"{"), MAX_CONTAINERS),
        ("values", raw.count(b","), MAX_VALUES),
    ):
        if found > limit:
            raise CheckpointError(f"{path}: holds {found} {what}, more than {limit}. Download it again.")


def refuse_large_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config whose numbers no model has, before a library counts up to them.

    Raises:
        CheckpointError: a number is too large for what it counts, or tables are nested too deeply; names the key.
    """
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{path}: nests tables more than {MAX_DEPTH} deep. Download it again.")
        if isinstance(value, Mapping):
            waiting += [(str(name), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item, depth + 1) for item in value]
        elif isinstance(value, int) and not isinstance(value, bool) and not -MAX_SIZE <= value <= _limit(key):
            raise CheckpointError(
                f"{path}: {key[:80]!r} is {str(value)[:40]}, above the limit of {_limit(key)}. Check config.json, or "
                "download it again."
            )


def _limit(key: str) -> int:
    if _LABELS.fullmatch(key):
        return MAX_LABELS
    return MAX_LAYERS if _LAYERS.fullmatch(key) else MAX_SIZE
