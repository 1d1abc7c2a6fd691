"""A checkpoint: a folder in Hugging Face format or bare weights, opened by headers only; tensors are read on demand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sftm_app.errors import CheckpointError, NumericalError
from sftm_app.weights.adapter_config import AdapterConfig, parse_adapter_config
from sftm_app.weights.bare import find_bare, pickles_in, refuse_pickle
from sftm_app.weights.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    INDEX_SUFFIX,
    SHARD_NAME,
    WEIGHTS_NAME,
)
from sftm_app.weights.filling import fill
from sftm_app.weights.header import FileStamp, Header, TensorInfo, open_regular, read_header
from sftm_app.weights.shards import refuse_foreign_link, refuse_unnamed_shards, size_note

MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and verified.

    `tensors` maps each name, as it stands in the files, to its place; `files` maps the same name to its file.
    `adapter` is set for a LoRA adapter, whose `config` is empty.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]
    stamps: dict[Path, FileStamp]
    adapter: AdapterConfig | None = None

    @property
    def bare(self) -> bool:
        """Whether no config says what model this is, so that roles are guessed."""
        return not self.config and self.adapter is None

    @property
    def model_type(self) -> str:
        return "lora" if self.adapter else str(self.config.get("model_type", "unknown"))

    @property
    def architecture(self) -> str:
        if self.adapter:
            return f"LoRA adapter, r {self.adapter.r}"
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else "unknown"

    @property
    def n_parameters(self) -> int:
        return sum(torch.Size(info.shape).numel() for info in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        return sum(info.n_bytes for info in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({str(info.dtype).removeprefix("torch.") for info in self.tensors.values()}))

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by index; empty when the config names none."""
        labels = self.config.get("id2label")
        if not isinstance(labels, dict):
            return {}
        return {int(key): str(label) for key, label in labels.items() if str(key).isdigit()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder, or a safetensors file, by its headers. Without config.json the checkpoint is bare.

    Raises
        CheckpointError: no such folder, no permission, no safetensors, several without config.json, or a damaged file;
            with the next step.
    """
    # os.path, because Path.expanduser() raises for an unknown ~user.
    folder = Path(os.path.expanduser(path))
    try:
        return _open_folder(folder)
    except OSError as error:
        # Nothing else is said of what this user may not look into: it may well be a sound checkpoint.
        why = "no permission to read it" if isinstance(error, PermissionError) else f"cannot be read ({error.strerror})"
        where = error.filename or folder
        raise CheckpointError(f"{where}: {why}. Change its permissions, or copy the checkpoint elsewhere.") from None


def _is_there(path: Path) -> bool:
    """Whether something stands at `path`. Unlike Path.exists, which differs between Python's versions, it raises
    PermissionError when that is not for this user to know, and takes a path too long or with a null byte for absent."""
    try:
        os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False
    return True


def _open_folder(folder: Path) -> Checkpoint:
    if not _is_there(folder):
        raise CheckpointError(f"{folder}: there is no such folder. Check the path.")
    if folder.is_file():
        return _open_file(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a checkpoint folder. Pick the folder that holds {CONFIG_NAME}.")
    if _is_there(folder / ADAPTER_CONFIG_NAME):
        return _open_adapter(folder)
    if not _is_there(folder / CONFIG_NAME):
        found = find_bare(folder)
        if found is None:
            raise CheckpointError(f"{folder}: has no {CONFIG_NAME}. {_next_step_without_config(folder)}")
        return _assemble(folder, {}, _read_bare(found))
    config = read_json(folder / CONFIG_NAME)
    if not config:
        raise CheckpointError(f"{folder / CONFIG_NAME}: is empty. Download it again, or remove it to merge by guesses.")
    return _assemble(folder, config, _read_headers(folder))


def _open_adapter(folder: Path) -> Checkpoint:
    config_file = folder / ADAPTER_CONFIG_NAME
    stamp, values = FileStamp.of(config_file), read_json(config_file)
    if values.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder}: is an adapter of the kind {values.get('peft_type')!r}; only LoRA adapters can be merged as "
            "they are. Merge it into its base with PEFT (`merge_and_unload`, if its kind allows that) and pick that."
        )
    if _is_there(folder / WEIGHTS_NAME) or _is_there(folder / INDEX_NAME):
        raise CheckpointError(
            f"{folder}: holds both a LoRA adapter and a full model. Move the one meant to a folder of its own."
        )
    file = folder / ADAPTER_WEIGHTS_NAME
    if not _is_there(file):
        if not _is_there(folder / "adapter_model.bin"):
            raise CheckpointError(f"{file}: is missing. Download the adapter again.")
        raise CheckpointError(
            f"{folder}: its weights are a pickle (adapter_model.bin), which can run code when loaded. Convert it: load "
            "it with `PeftModel.from_pretrained(base, folder)` and save it with `save_pretrained(folder)`: that writes "
            "safetensors."
        )
    refuse_foreign_link(file)
    opened = _assemble(folder, {}, {file: read_header(file)})
    # Rank and alpha decide what is merged as much as the weights do.
    stamps = opened.stamps | {config_file: stamp}
    return replace(opened, stamps=stamps, adapter=parse_adapter_config(values))


def _open_file(file: Path) -> Checkpoint:
    """A weight file stands for its folder where a config beside it says so, else for itself."""
    folder = file.parent
    described = [name for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME) if _is_there(folder / name)]
    found = find_bare(file)
    if not described:
        assert found is not None
        return _assemble(found, {}, _read_bare(found))
    opened = _open_folder(folder)
    if file.resolve() not in {path.resolve() for path in opened.files.values()} and file.name != INDEX_NAME:
        raise CheckpointError(
            f"{file}: is not the file that {described[0]} beside it belongs to. Move it to a folder of its own to have "
            f"its roles guessed, or pick the folder {folder}."
        )
    return opened


def _assemble(path: Path, config: dict[str, Any], headers: dict[Path, Header]) -> Checkpoint:
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    for file, header in headers.items():
        for info in header.tensors:
            if info.name in files:
                raise CheckpointError(
                    f"{path}: tensor {info.name!r} stands in both {files[info.name].name} and {file.name}. "
                    "Download the checkpoint again."
                )
            tensors[info.name], files[info.name] = info, file
    if not tensors:
        raise CheckpointError(f"{path}: its weight files hold no tensors. Download the checkpoint again.")
    stamps = {file: header.stamp for file, header in headers.items()}
    return Checkpoint(path.resolve(), config, tensors, files, stamps)


def _next_step_without_config(folder: Path) -> str:
    try:
        inner = sorted(child.name for child in folder.iterdir() if (child / CONFIG_NAME).is_file())
    except OSError:
        inner = []
    if inner:
        return f"It holds checkpoints itself: pick one of {', '.join(inner[:8])}."
    return "Pick the folder that `save_pretrained` wrote, with config.json and model.safetensors in it."


def _read_headers(folder: Path) -> dict[Path, Header]:
    if _is_there(folder / INDEX_NAME):
        if _is_there(folder / WEIGHTS_NAME):
            raise CheckpointError(
                f"{folder}: holds both {WEIGHTS_NAME} and {INDEX_NAME}, and they may differ. Remove the one not meant."
            )
        return _read_sharded(folder / INDEX_NAME)
    if _is_there(folder / WEIGHTS_NAME):
        refuse_foreign_link(folder / WEIGHTS_NAME)
        return {folder / WEIGHTS_NAME: read_header(folder / WEIGHTS_NAME)}
    if pickles := pickles_in(folder):
        raise refuse_pickle(folder, pickles[0])
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = f" It holds {', '.join(others[:4])}; rename the one meant to {WEIGHTS_NAME}." if others else ""
    raise CheckpointError(f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}.{hint or ' Download it again.'}")


def _read_bare(found: Path) -> dict[Path, Header]:
    refuse_foreign_link(found)
    return _read_sharded(found) if found.name.endswith(INDEX_SUFFIX) else {found: read_header(found)}


def _read_sharded(index_path: Path) -> dict[Path, Header]:
    folder = index_path.parent
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: has no table `weight_map`. Download the checkpoint again.")
    headers: dict[Path, Header] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if not SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index_path}: names the shard {shard!r}; only plain .safetensors names beside the index are allowed."
            )
        refuse_foreign_link(folder / shard)
        headers[folder / shard] = read_header(folder / shard)
    refuse_unnamed_shards(index_path, [file.name for file in headers])
    found = {(info.name, file.name) for file, header in headers.items() for info in header.tensors}
    claimed = {(str(name), str(shard)) for name, shard in weight_map.items()}
    for name, shard in sorted(claimed - found)[:1]:
        raise CheckpointError(f"{folder / shard}: tensor {name!r} should be in it and is not. Download it again.")
    for name, shard in sorted(found - claimed)[:1]:
        raise CheckpointError(
            f"{folder / shard}: holds tensor {name!r}, which the index does not place there. Download it again."
        )
    return headers


def index_note(checkpoint: Checkpoint) -> str | None:
    """What the index of a sharded checkpoint claims wrongly of its files, in a sentence; None when nothing.

    Raises
        CheckpointError: the index is gone or was damaged since the checkpoint was opened.
    """
    index = checkpoint.path if checkpoint.path.name.endswith(INDEX_SUFFIX) else checkpoint.path / INDEX_NAME
    if not index.is_file():
        return None
    sizes = {name: info.n_bytes for name, info in checkpoint.tensors.items()}
    return size_note(read_json(index).get("metadata"), sizes)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON table from a regular file of at most 64 MiB.

    Raises
        CheckpointError: when it is missing, too large, or not a JSON table.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: is larger than {MAX_JSON_BYTES} bytes. Pick another checkpoint.")
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON. Download it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: should hold a JSON table. Download it again.")
    return value


class TensorReader:
    """Reads tensors of one checkpoint; refuses once a file changed since the checkpoint was opened.

    Files are read, not mapped: a mapped file that shrinks would kill the process with SIGBUS, and its pages would
    count as memory of ours.
    """

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack = stack
        self._handles: dict[Path, FileIO] = {}
        self._lock = Lock()

    def __call__(self, name: str, row: int | None = None, span: tuple[int, int] | None = None) -> Tensor:
        """The tensor `name` as stored, on the CPU, with its stored dtype and shape. Threads may read at once.

        row: only this entry along the first dimension, as one expert of a stack; span: only the elements from the first
        up to the second, in the order in which they are stored, as a vector. No more than that is read.

        Raises
            CheckpointError: the file changed or cannot be read.
        """
        file, info = self._checkpoint.files[name], self._checkpoint.tensors[name]
        shape = info.shape if row is None else info.shape[1:]
        tensor = torch.empty(shape if span is None else (span[1] - span[0],), dtype=info.dtype)
        start = ((span[0] if span else 0) + (row or 0) * torch.Size(shape).numel()) * tensor.itemsize
        try:
            if FileStamp.of(file) != self._checkpoint.stamps[file]:
                raise CheckpointError(f"{file}: was changed while in use. Start again.")
            with self._lock:
                if file not in self._handles:
                    self._handles[file] = self._stack.enter_context(FileIO(file))
            fill(tensor, self._handles[file], info.offset + start, self._lock)
        except OSError as error:
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read ({error}). Start again.") from None
        return tensor

    def finite(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        row: int | None = None,
        span: tuple[int, int] | None = None,
    ) -> Tensor:
        """The same in a floating-point compute `dtype`, refused when it holds NaN or Inf.

        Raises
            NumericalError: naming the file, the tensor and how many values are not finite.
        """
        tensor = self(name, row, span).to(dtype)
        # One pass over the data instead of three: the sum is finite unless a value is not, or it overflows.
        if tensor.numel() and not torch.isfinite(tensor.sum()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            total = tensor.numel()
            if n_bad and span is not None:
                # How many there are in all, in pieces no larger than this one.
                total = torch.Size(self._checkpoint.tensors[name].shape).numel()
                spans = ((start, min(start + tensor.numel(), total)) for start in range(0, total, tensor.numel()))
                n_bad = sum(int((~torch.isfinite(self(name, span=each).to(dtype))).sum()) for each in spans)
            if n_bad:
                raise NumericalError(
                    f"{self._checkpoint.files[name]}: tensor {name!r} holds {n_bad} values that are NaN or infinite "
                    f"out of {total}. The checkpoint is broken: train or download it again."
                )
        return tensor


@contextmanager
def open_reader(checkpoint: Checkpoint) -> Iterator[TensorReader]:
    """A TensorReader whose files are closed at the end of the block."""
    with ExitStack() as stack:
        yield TensorReader(checkpoint, stack)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one small safetensors file, such as a task's head or a set of samples.

    Raises
        CheckpointError: missing or damaged.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt", backend="pread") as file:
            return {info.name: file.get_tensor(info.name) for info in header.tensors}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Start again.") from None
