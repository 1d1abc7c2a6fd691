"""Turns PyTorch's pickled weights (.bin, .pt) into safetensors, when a person asks for it.

A pickle can run code when it is loaded. So it is loaded with `weights_only=True`, which knows tensors and plain
containers only, in a process of its own that is offline and has limits of time and memory, and never in another way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sftm_app.errors import CheckpointError
from sftm_app.processes import limit_memory, python_command, stay_offline
from sftm_app.weights.bare import PICKLE_SUFFIXES
from sftm_app.weights.copying import copy_file
from sftm_app.weights.file_names import ADAPTER_WEIGHTS_NAME, INDEX_NAME, WEIGHTS_NAME
from sftm_app.weights.header import read_header
from sftm_app.weights.partial import check_disk_space, output_folder
from sftm_app.weights.shards import refuse_foreign_link

# What a process of Python and torch takes before it loads anything, and how many bytes a second it loads at least.
BASE_BYTES = 1 << 30
BYTES_PER_S = 10e6
START_S = 120.0
_MAX_ENTRIES = 200_000
# Files that training leaves next to a model; none of them holds its weights.
_OF_TRAINING = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "trainer_state")
# Where trainers put the weights inside a larger pickle.
_INSIDE = ("state_dict", "model_state_dict", "model", "module", "ema")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def _files_in(folder: Path) -> list[Path]:
    """The files in a folder, with links to the blobs of the hub's cache. Raises CheckpointError for other links."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in found:
        refuse_foreign_link(file, folder)
    return [file.relative_to(folder) for file in found]


def convert(path: Path, output: Path | None = None) -> list[str]:
    """Write a copy of a checkpoint whose pickled weights are safetensors.

    Args:
        path: a folder with pickled weights, or one such file.
        output: the new folder; must not exist. None writes FOLDER-safetensors next to it.

    Returns:
        Sentences on what was done, the last of them with the new folder.

    Raises:
        CheckpointError: there are no pickled weights, or a file is no plain pickle of tensors, or takes too much.
        OutputError, ResourceError: see `output_folder`.
    """
    folder = path if path.is_dir() else path.parent
    output = output or path.with_name(f"{path.name if path.is_dir() else path.stem}-safetensors")
    files = _files_in(path) if path.is_dir() else [Path(path.name)]
    weights = {file: _new_name(file) for file in files if _is_weights(file)}
    if not weights:
        raise CheckpointError(f"{path}: holds no pickled weights (.bin, .pt, .pth or .ckpt). Nothing to convert.")
    if clash := [new for new in weights.values() if new in files]:
        raise CheckpointError(f"{folder / clash[0]}: is there already. Use it, or move the pickle to its own folder.")
    if len(set(weights.values())) < len(weights):
        names = ", ".join(str(file) for file in weights)
        raise CheckpointError(f"{path}: holds several pickles that would become one file ({names}). Give one of them.")
    check_disk_space(output, sum((folder / file).stat().st_size for file in files))
    notes = []
    with output_folder(output) as partial:
        for file in files:
            target = partial / weights.get(file, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in weights:
                notes += _convert_file(folder / file, target)
            elif file.name.endswith(".bin.index.json"):
                _write_index(folder / file, partial / file.parent / INDEX_NAME)
            elif file.suffix not in PICKLE_SUFFIXES:
                copy_file(folder / file, target)
    return [*notes, f"The converted checkpoint is in {output}."]


def _is_weights(file: Path) -> bool:
    return file.suffix in PICKLE_SUFFIXES and not file.name.startswith(_OF_TRAINING)


def _new_name(file: Path) -> Path:
    if file.stem == "adapter_model":
        return file.with_name(ADAPTER_WEIGHTS_NAME)
    if file.stem.startswith("pytorch_model-"):
        return file.with_name(file.stem.replace("pytorch_model", "model", 1) + ".safetensors")
    return file.with_name(WEIGHTS_NAME)


def _write_index(source: Path, target: Path) -> None:
    try:
        index = json.loads(source.read_text(encoding="utf-8"))
        places = {str(name): str(_new_name(Path(file))) for name, file in index["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{source}: is no index of shards. Download it again.") from None
    target.write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2, sort_keys=True), encoding="utf-8")


def _convert_file(source: Path, target: Path) -> list[str]:
    """Convert one file in another process, and check what came out. Returns notes."""
    refuse_unbounded(source)
    size = source.stat().st_size
    limit_s = START_S + size / BYTES_PER_S
    memory = BASE_BYTES + 3 * size
    question = json.dumps({"source": str(source), "target": str(target), "memory": memory})
    try:
        done = subprocess.run(
            python_command(__name__, _OFFLINE), input=question, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"{source}: could not be loaded within {limit_s:.0f} seconds. Check the file.") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise CheckpointError(
            f"{source}: could not be loaded within {memory / 2**30:.1f} GB of memory. It holds more than "
            "its size says, or is damaged: download it again."
        ) from None
    if "error" in answer:
        raise CheckpointError(f"{source}: {answer['error']}")
    found = {info.name: list(info.shape) for info in read_header(target).tensors}
    if found != answer["shapes"]:
        raise CheckpointError(f"{source}: was not converted completely. Start again.")
    return [f"{source.name}: {len(found)} tensors, now in {target.name}.", *answer["notes"]]


def refuse_unbounded(file: Path) -> None:
    """Refuse a zip archive whose content may be larger than the file: compressed entries, or too many of them.

    Raises:
        CheckpointError: it is one, or cannot be read.
    """
    try:
        if not zipfile.is_zipfile(file):
            return  # torch's older format, which is as long as its content
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        size = file.stat().st_size
    except (OSError, zipfile.BadZipFile, ValueError):
        raise CheckpointError(f"{file}: is a damaged archive. Download it again.") from None
    if len(entries) > _MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{file}: holds compressed or too many entries, which torch does not write. Not loaded.")
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"{file}: says that its entries are larger than the file. Not loaded.")


def main() -> None:
    """Convert the file that standard input names, and say how it went."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    stay_offline()
    question = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    limit_memory(int(question["memory"]))
    answers.write(json.dumps(_answer(Path(question["source"]), Path(question["target"]))))
    answers.flush()


def _answer(source: Path, target: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=False)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises all kinds
        reason = str(error).partition("\n")[0][:300]
        return {"error": f"is no plain pickle of tensors, so it is not loaded ({type(error).__name__}: {reason})."}
    state, where = _state_of(loaded)
    if state is None:
        keys = ", ".join(str(key)[:40] for key in list(loaded)[:8]) if isinstance(loaded, Mapping) else "no table"
        return {"error": f"holds no table of tensors, but {keys}. Save the model's state_dict alone."}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    notes = [f"The weights were read from its entry {where!r}."] if where else []
    if others := [str(name) for name in state if str(name) not in tensors]:
        notes.append(f"{len(others)} entries that are no tensors were left out: {', '.join(others[:5])}.")
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target, {"format": "pt"}
    )
    return {"shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}, "notes": notes}


def _state_of(loaded: Any) -> tuple[Mapping[Any, Any] | None, str]:
    """The table of tensors in what was loaded, and the entry that holds it ("" for the whole)."""
    if not isinstance(loaded, Mapping):
        return None, ""
    if loaded and sum(isinstance(value, Tensor) for value in loaded.values()) > len(loaded) / 2:
        return loaded, ""
    for key in _INSIDE:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner, key
    return None, ""
