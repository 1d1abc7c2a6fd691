"""What a sharded checkpoint may be: where its files may lie, and what its index claims of their size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError

_SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")


def refuse_foreign_link(file: Path) -> None:
    """A link must stay in the checkpoint's folder, or lead to the blobs that the hub's cache keeps above it.

    Raises
        CheckpointError: it leads elsewhere.
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
    """A further shard beside those that the index names is a part of another checkpoint, or the index is.

    Raises
        CheckpointError: there is one.
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
    """A sentence when the index's `total_size` is not the bytes of the tensors (name -> bytes); None when it is."""
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(n_bytes.values())
    if claimed is None or claimed == found:
        return None
    return (
        f"The index says that the tensors take {str(claimed)[:40]} bytes in all, but its files hold {found}. "
        "Every tensor that it names is there, so the files count."
    )
