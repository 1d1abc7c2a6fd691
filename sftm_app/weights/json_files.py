"""Reads JSON files of a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import open_regular
from sftm_app.weights.safe_config import refuse_large_json

MAX_JSON_BYTES = 64 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a regular file of at most 64 MiB, which holds no millions of lists and tables.

    Raises:
        CheckpointError: the file is missing, too large, or holds something else.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: is larger than {MAX_JSON_BYTES} bytes. Pick another checkpoint.")
    refuse_large_json(path, raw)
    return parse_object(path, raw)


def parse_object(path: Path, raw: bytes) -> dict[str, Any]:
    """Read a JSON object from the bytes of a file.

    Raises:
        CheckpointError: it is not JSON, or something else than an object.
    """
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON. Download it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: should hold a JSON object. Download it again.")
    return value
