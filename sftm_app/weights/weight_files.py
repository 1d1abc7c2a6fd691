"""The headers of a model's weight files: one file, or an index and the shards that it names."""

from __future__ import annotations

import os
from pathlib import Path

from sftm_app.errors import CheckpointError
from sftm_app.weights.bare import pickle_error, pickles_in
from sftm_app.weights.file_names import INDEX_NAME, INDEX_SUFFIX, SHARD_NAME, STEMS, WEIGHTS_NAME
from sftm_app.weights.header import Header, read_header
from sftm_app.weights.json_files import read_json
from sftm_app.weights.shards import refuse_foreign_link, refuse_unnamed_shards


def is_there(path: Path) -> bool:
    """Whether `path` exists. Raises PermissionError where this user may not know.

    A path that is too long or holds a null byte does not exist. Path.exists differs between versions of Python.
    """
    try:
        os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def read_headers(folder: Path) -> dict[Path, Header]:
    """The headers of a model's weight files, in a folder with a config.

    Raises:
        CheckpointError: there are none, or they do not belong together.
        OSError: the folder cannot be read.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}{INDEX_SUFFIX}", folder / f"{stem}.safetensors"
        if is_there(index):
            if is_there(single):
                raise CheckpointError(
                    f"{folder}: holds both {single.name} and {index.name}, and they may differ. Remove one of them."
                )
            return _read_sharded(index)
        if is_there(single):
            return read_bare(single)
    if pickles := pickles_in(folder):
        raise pickle_error(folder, pickles[0])
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = f" It holds {', '.join(others[:4])}; rename the one you want to {WEIGHTS_NAME}." if others else ""
    raise CheckpointError(f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}.{hint or ' Download it again.'}")


def read_bare(found: Path) -> dict[Path, Header]:
    """The headers of a weight file, or of the shards that an index names. Raises CheckpointError."""
    refuse_foreign_link(found)
    return _read_sharded(found) if found.name.endswith(INDEX_SUFFIX) else {found: read_header(found)}


def _read_sharded(index_path: Path) -> dict[Path, Header]:
    folder = index_path.parent
    refuse_foreign_link(index_path)
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: has no table `weight_map`. Download the checkpoint again.")
    headers: dict[Path, Header] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if not SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index_path}: names the shard {shard!r}; only plain .safetensors names next to the index are allowed."
            )
        refuse_foreign_link(folder / shard)
        headers[folder / shard] = read_header(folder / shard)
    refuse_unnamed_shards(index_path, [file.name for file in headers])
    found = {(info.name, file.name) for file, header in headers.items() for info in header.tensors}
    claimed = {(str(name), str(shard)) for name, shard in weight_map.items()}
    for name, shard in sorted(claimed - found)[:1]:
        raise CheckpointError(
            f"{folder / shard}: lacks tensor {name!r}, which the index places there. Download it again."
        )
    for name, shard in sorted(found - claimed)[:1]:
        raise CheckpointError(
            f"{folder / shard}: holds tensor {name!r}, which the index does not place there. Download it again."
        )
    return headers
