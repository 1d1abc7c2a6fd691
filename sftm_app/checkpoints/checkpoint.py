"""A checkpoint: a folder in Hugging Face format, opened by its headers only; tensors are read on demand."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sftm_app.checkpoints.header import FileStamp, Header, TensorInfo, open_regular, read_header
from sftm_app.errors import CheckpointError, NumericalError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"
MAX_JSON_BYTES = 64 * 1024 * 1024
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and verified.

    `tensors` maps each name, as it stands in the files, to its place; `files` maps the same name to its file.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]
    stamps: dict[Path, FileStamp]

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def architecture(self) -> str:
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
    """Open a checkpoint folder by its headers.

    Raises
        CheckpointError: no such folder, no permission, no config.json, no safetensors, or a damaged file; with the next
            step.
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
    if folder.is_file() and folder.suffix == ".safetensors":
        folder = folder.parent
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a checkpoint folder. Pick the folder that holds {CONFIG_NAME}.")
    if _is_there(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder}: is a LoRA adapter. Adapters cannot be merged yet; merge it into its base first "
            "(`peft_model.merge_and_unload().save_pretrained(folder)`) and pick that folder."
        )
    if not _is_there(folder / CONFIG_NAME):
        raise CheckpointError(f"{folder}: has no {CONFIG_NAME}. {_next_step_without_config(folder)}")
    config = read_json(folder / CONFIG_NAME)
    headers = _read_headers(folder)
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, Path] = {}
    for file, header in headers.items():
        for info in header.tensors:
            if info.name in files:
                raise CheckpointError(
                    f"{folder}: tensor {info.name!r} stands in both {files[info.name].name} and {file.name}. "
                    "Download the checkpoint again."
                )
            tensors[info.name], files[info.name] = info, file
    if not tensors:
        raise CheckpointError(f"{folder}: its weight files hold no tensors. Download the checkpoint again.")
    stamps = {file: header.stamp for file, header in headers.items()}
    return Checkpoint(folder.resolve(), config, tensors, files, stamps)


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
        return _read_sharded(folder)
    if _is_there(folder / WEIGHTS_NAME):
        return {folder / WEIGHTS_NAME: read_header(folder / WEIGHTS_NAME)}
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder}: its weights are a pickle ({pickles[0]}), which can run code when loaded. Convert it: load the "
            "model with transformers and save it with `model.save_pretrained(folder)`, which writes safetensors."
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    hint = f" It holds {', '.join(others[:4])}; rename the one meant to {WEIGHTS_NAME}." if others else ""
    raise CheckpointError(f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}.{hint or ' Download it again.'}")


def _read_sharded(folder: Path) -> dict[Path, Header]:
    index_path = folder / INDEX_NAME
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: has no table `weight_map`. Download the checkpoint again.")
    headers: dict[Path, Header] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        if not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index_path}: names the shard {shard!r}; only plain .safetensors names beside the index are allowed."
            )
        headers[folder / shard] = read_header(folder / shard)
    found = {(info.name, file.name) for file, header in headers.items() for info in header.tensors}
    claimed = {(str(name), str(shard)) for name, shard in weight_map.items()}
    for name, shard in sorted(claimed - found)[:1]:
        raise CheckpointError(f"{folder / shard}: tensor {name!r} should be in it and is not. Download it again.")
    for name, shard in sorted(found - claimed)[:1]:
        raise CheckpointError(
            f"{folder / shard}: holds tensor {name!r}, which the index does not place there. Download it again."
        )
    return headers


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

    Files are read with pread: a file that shrinks while mapped into memory would kill the process with SIGBUS.
    """

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack = stack
        self._handles: dict[Path, Any] = {}

    def __call__(self, name: str) -> Tensor:
        """The tensor `name` as stored, on the CPU, with its stored dtype and shape.

        Raises
            CheckpointError: the file changed or cannot be read.
        """
        file = self._checkpoint.files[name]
        try:
            if FileStamp.of(file) != self._checkpoint.stamps[file]:
                raise CheckpointError(f"{file}: was changed while in use. Start again.")
            if file not in self._handles:
                self._handles[file] = self._stack.enter_context(safe_open(file, "pt", backend="pread"))
            tensor: Tensor = self._handles[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read ({error}). Start again.") from None
        return tensor

    def finite(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same in a floating-point compute `dtype`, refused when it holds NaN or Inf.

        Raises
            NumericalError: naming the file, the tensor and how many values are not finite.
        """
        tensor = self(name).to(dtype)
        # One pass over the data instead of three: the sum is finite unless a value is not, or it overflows.
        if tensor.numel() and not torch.isfinite(tensor.sum()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            if n_bad:
                raise NumericalError(
                    f"{self._checkpoint.files[name]}: tensor {name!r} holds {n_bad} values that are NaN or infinite "
                    f"out of {tensor.numel()}. The checkpoint is broken: train or download it again."
                )
        return tensor


@contextmanager
def open_reader(checkpoint: Checkpoint) -> Iterator[TensorReader]:
    """A TensorReader whose files are closed at the end of the block."""
    with ExitStack() as stack:
        yield TensorReader(checkpoint, stack)


def hash_files(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every weight file, by its name: of the bytes that the checkpoint was opened with.

    Raises
        CheckpointError: a file changed since then or cannot be read.
    """
    hashes = {}
    for path, stamp in sorted(checkpoint.stamps.items()):
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                changed = FileStamp.of(file.fileno()) != stamp or FileStamp.of(path) != stamp
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Start again.") from None
        if changed:
            raise CheckpointError(f"{path}: was changed while in use. Start again.")
        hashes[path.name] = digest.hexdigest()
    return hashes


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
