"""Weights without config.json: which safetensors file, or index of shards, a path stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sftm_app.errors import CheckpointError
from sftm_app.weights.file_names import INDEX_SUFFIX

GGUF_SUFFIX = ".gguf"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_MAX_NAMED = 5


def pickle_error(path: Path, name: str) -> CheckpointError:
    """The error for a pickle, with how to convert it. name: the pickle's file name, at or in `path`."""
    return CheckpointError(
        f"{path}: its weights are a pickle ({name}), which can run code when loaded, so it is never loaded by itself. "
        "If you trust where it is from, run `sftm convert FOLDER`, which writes a copy with safetensors: it reads "
        "tensors only, in a process with limits."
    )


def gguf_error(file: Path) -> CheckpointError:
    """The error for a file of llama.cpp."""
    return CheckpointError(
        f"{file}: is a GGUF file of llama.cpp, with its own names and mostly quantised weights. Use the checkpoint "
        "that it was made from. If there is none, transformers can turn it into one: "
        f"`AutoModelForCausalLM.from_pretrained(folder, gguf_file={file.name!r}).save_pretrained(new)`."
    )


def pickles_in(folder: Path) -> list[str]:
    """Names of the weight files in `folder` that are pickles."""
    return sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)


def weight_sets(folder: Path, names: Iterable[str]) -> list[Path]:
    """The sets of weights among files called `names` in a folder: single files, and one index per set of shards."""
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    singles = [name for name in names if name.endswith(".safetensors") and not _SHARD.search(name)]
    return [folder / name for name in sorted(indices) + sorted(singles)]


def find_weights(path: Path) -> Path | None:
    """The safetensors file or index that a file, or a folder without config.json, stands for.

    Returns:
        Its path; None where the folder holds no weights.

    Raises:
        CheckpointError: a pickle, another kind of file, a shard without its index, or a folder with several sets.
        OSError: the folder cannot be read.
    """
    if path.is_dir():
        found = weight_sets(path, [file.name for file in path.iterdir()])
        if len(found) > 1:
            more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
            raise CheckpointError(
                f"{path}: holds {len(found)} sets of weights and no config.json: "
                f"{', '.join(file.name for file in found[:_MAX_NAMED])}{more}. Pick one by the path of its file."
            )
        if not found and (others := sorted(path.glob(f"*{GGUF_SUFFIX}"))):
            raise gguf_error(others[0])
        if not found and (pickles := pickles_in(path)):
            raise pickle_error(path, pickles[0])
        return found[0] if found else None
    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path, path.name)
    if _SHARD.search(path.name):
        index = path.with_name(_SHARD.sub("", path.name) + INDEX_SUFFIX)
        if not index.is_file():
            raise CheckpointError(
                f"{path}: is one shard of a model, and {index.name}, which lists the shards, is not next to it. "
                "Download it too."
            )
        return index
    if path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX):
        return path
    if path.suffix == GGUF_SUFFIX:
        raise gguf_error(path)
    raise CheckpointError(f"{path}: is not a checkpoint folder, nor a .safetensors file. Pick one of these.")
