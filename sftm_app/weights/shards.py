"""Checks of weight files: where links may lead, which shards belong together, and the size in the index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError

_SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")


def refuse_foreign_link(file: Path) -> None:
    """Refuse a link that leads out of the checkpoint's folder, except to the blobs of the hub's cache above it.

    Raises:
        CheckpointError: the link leads elsewhere.
    """
    if not file.is_symlink():
        return
    folder, target = file.parent.resolve(), file.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent in folder.parents
    if not (target.is_relative_to(folder) or in_cache):
        raise CheckpointError(
            f"{file}: is a link that leads out of the checkpoint, to {target}. "
            "Put the file itself there, or pick the folder that holds it."
        )


def refuse_unnamed_shards(index_path: Path, named: Sequence[str]) -> None:
    """Refuse a folder that holds more shards than the index names: one of them is from another checkpoint.

    Raises:
        CheckpointError: there is such a shard.
    """
    series = {found[1] for name in named if (found := _SHARD.fullmatch(name))}
    for file in sorted(index_path.parent.glob("*.safetensors")):
        found = _SHARD.fullmatch(file.name)
        if found and found[1] in series and file.name not in named:
            raise CheckpointError(
                f"{file}: is a shard that {index_path.name} does not name. Remove it if it is left over from another "
                "checkpoint, or download this one again."
            )


def size_note(metadata: Any, n_bytes: Mapping[str, int]) -> str | None:
    """A sentence when the index's `total_size` differs from the bytes of its tensors, which are given by name."""
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(n_bytes.values())
    if claimed is None or claimed == found:
        return None
    return (
        f"The index says that the tensors take {str(claimed)[:40]} bytes in total, but the files hold {found}. "
        "Every tensor in the index is there, so the files are used as they are."
    )
