"""Weights without config.json: which safetensors file, or index of shards, a path stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sftm_app.errors import CheckpointError
from sftm_app.weights.file_names import INDEX_SUFFIX

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def refuse_pickle(path: Path, name: str) -> CheckpointError:
    """The sentence on how to convert a pickle without running it. name: of the pickle, at or in `path`."""
    return CheckpointError(
        f"{path}: its weights are a pickle ({name}), which can run code when loaded. Convert it: load the model with "
        "transformers and save it with `model.save_pretrained(folder)`, which writes safetensors. Without a config: "
        f"`safetensors.torch.save_file(torch.load({name!r}, weights_only=True), 'model.safetensors')`."
    )


def pickles_in(folder: Path) -> list[str]:
    """Names of the weights in `folder` that are pickles."""
    return sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)


def is_shard(name: str) -> bool:
    """Whether a file's name says that it holds a part of a model."""
    return bool(_SHARD.search(name))


def sets_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """The sets of weights among the files of a folder: single safetensors files, and an index for each set of shards.

    names: of the files in it.
    """
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    singles = [name for name in names if name.endswith(".safetensors") and not is_shard(name)]
    return [folder / name for name in sorted(indices) + sorted(singles)]


def find_bare(path: Path) -> Path | None:
    """The one file or index that `path`, a file or a folder without config.json, stands for; None: nothing is there.

    Raises
        CheckpointError: a pickle, another kind of file, a shard without its index, or a folder with several sets.
        OSError: it cannot be looked into.
    """
    if path.is_dir():
        found = sets_of(path, [file.name for file in path.iterdir()])
        if len(found) > 1:
            raise CheckpointError(
                f"{path}: holds {len(found)} sets of weights and no config.json: {_names(found)}. Pick one by the path "
                "of its file."
            )
        if not found and (pickles := pickles_in(path)):
            raise refuse_pickle(path, pickles[0])
        return found[0] if found else None
    if path.suffix in PICKLE_SUFFIXES:
        raise refuse_pickle(path, path.name)
    if is_shard(path.name):
        return _index_of(path)
    if path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX):
        return path
    raise CheckpointError(f"{path}: is not a checkpoint folder, nor a .safetensors file. Pick the one or the other.")


def _index_of(shard: Path) -> Path:
    stem = _SHARD.sub("", shard.name)
    index = shard.with_name(stem + INDEX_SUFFIX)
    if not index.is_file():
        raise CheckpointError(
            f"{shard}: is one part of a model, and {index.name}, which names the parts, is not beside it. "
            "Download it too."
        )
    return index


def _names(found: list[Path]) -> str:
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(path.name for path in found[:5]) + more
