"""Checks of weight files: where links may lead, which shards belong together, and the size in the index."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftm_app.errors import CheckpointError

_SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")


def refuse_foreign_link(file: Path, root: Path | None = None) -> None:
    """Refuse a file that does not lie in its checkpoint once every link on the way to it is followed.

    The blobs of the hub's cache to which a snapshot belongs are allowed, and no others.

    Args:
        file: the file; it need not exist.
        root: the checkpoint's folder; by default the one that the file is in.

    Raises:
        CheckpointError: a link leads elsewhere, or in a circle.
    """
    try:
        folder, target = (root or file.parent).resolve(), file.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"{file}: its links lead in a circle. Put the file itself there.") from None
    if not (target.is_relative_to(folder) or target.parent == _own_blobs(folder)):
        raise CheckpointError(
            f"{file}: is a link that leads out of the checkpoint, to {target}. "
            "Put the file itself there, or pick the folder that holds it."
        )


def refuse_foreign_links(folder: Path) -> None:
    """Refuse a folder in which a link leads out of it, before a library reads files there by names of its own.

    Raises:
        CheckpointError: see `refuse_foreign_link`.
        OSError: the folder cannot be read.
    """
    for entry in os.scandir(folder):
        if entry.is_symlink():
            refuse_foreign_link(Path(entry.path))


def _own_blobs(folder: Path) -> Path | None:
    """Where the files of a snapshot, models--ORG--NAME/snapshots/REVISION, really lie; None for another folder."""
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and snapshots != folder and snapshots.parent.name.startswith("models--"):
            return snapshots.parent / "blobs"
    return None


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
