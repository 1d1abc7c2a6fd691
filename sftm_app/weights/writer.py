"""Streaming, atomic output: a folder appears complete, or not at all.

The header is written first, for all sizes are known from the plan; then each tensor's bytes go in place, in any order.
Everything happens in `<output>.partial`, which is renamed once it is complete and on the disk. What a killed process
left there can be gone on with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sftm_app.errors import OutputError, ResourceError
from sftm_app.units import format_distinct
from sftm_app.weights.file_names import INDEX_NAME, WEIGHTS_NAME
from sftm_app.weights.header import DTYPE_CODES
from sftm_app.weights.partial import WORK_FILES, claim, clear, held_bytes, partial_of, remove_partial

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written. `shape` and `dtype` are those of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """The bytes of a tensor as they stand in the file. Raises ValueError for another shape or dtype."""
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(f"{self.name}: {tensor.dtype} {tuple(tensor.shape)} instead of {self}")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw: memoryview = flat.view(torch.uint8).numpy().data
        return raw


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes belong: from byte `offset` on in the file `path`, which has its header and full length."""

    path: Path
    offset: int
    tensor: OutputTensor


def write_at(place: Place, tensor: Tensor) -> int:
    """Put a tensor in its place in a file that another process made, and on the disk. Returns its checksum.

    Any number of processes may do so for different tensors at once.

    Raises
        OSError: there is no such file, or it cannot be written.
    """
    raw = place.tensor.bytes_of(tensor)
    with open(place.path, "r+b") as file:
        file.seek(place.offset)
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return zlib.crc32(raw)


@contextmanager
def output_folder(path: Path, keep: bool = False) -> Iterator[Path]:
    """A folder to fill: yields `<path>.partial`, renames it to `path` at the end of the block, removes it on any error.

    keep: begin with what a run that died left there, instead of an empty folder.

    Raises
        OutputError: `path` exists, cannot be written, or another run is writing it.
    """
    partial = partial_of(path)
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        claim(partial, keep)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None
    try:
        yield partial
        sync_folder(partial)
        # rename() replaces an empty folder silently, so look again just before it.
        refuse_existing(path)
        partial.rename(path)
        # The output is there now, complete: nothing that fails from here on may be called a failed merge.
        for name in WORK_FILES:
            with contextlib.suppress(OSError):
                (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_partial(partial)
        if isinstance(error, OSError):
            raise _disk_error(path, error) from None
        raise


def refuse_existing(path: Path) -> None:
    """Raises OutputError when something already stands at `path`."""
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists already. Choose another output folder, or remove it first.")


def check_room(path: Path, n_bytes: int) -> None:
    """Refuse an output for which the disk has too little room. What was begun there before counts as room.

    Raises
        OutputError: the place cannot be looked into.
        ResourceError: fewer than `n_bytes` are free.
    """
    try:
        existing = next(parent for parent in path.resolve().parents if parent.exists())
        free = shutil.disk_usage(existing).free + held_bytes(partial_of(path))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None
    if free < n_bytes:
        needed, left = format_distinct(n_bytes, free)
        raise ResourceError(
            f"{path}: needs {needed}, the disk has {left} free. Free some space or choose another output folder."
        )


def _disk_error(path: Path, error: OSError) -> Exception:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return ResourceError(f"{path}: the disk is full. Free some space or choose another output folder.")
    return OutputError(f"{path}: writing failed ({error.strerror or error}). Choose another output folder.")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shard(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> list[list[OutputTensor]]:
    """Split tensors into files of at most `max_shard_bytes`, which tensor goes where as transformers decides it.

    In order; a tensor larger than that gets a file of its own, and the one being filled goes on behind it.
    """
    shards: list[list[OutputTensor]] = []
    filling: list[OutputTensor] = []
    size = 0
    for tensor in tensors:
        if tensor.n_bytes > max_shard_bytes:
            shards.append([tensor])
            continue
        if size + tensor.n_bytes > max_shard_bytes:
            shards.append(filling)
            filling, size = [], 0
        filling.append(tensor)
        size += tensor.n_bytes
    return [*shards, filling] if filling or not shards else shards


class TensorFile:
    """One safetensors file whose header is written at once and whose tensors follow in any order.

    keep: go on with what a killed process left of this very file; tensors in it that are whole can be kept.

    Raises
        ValueError: a tensor comes twice, or with another shape or type than announced, or not at all.
    """

    def __init__(
        self, path: Path, tensors: Sequence[OutputTensor], metadata: dict[str, str], keep: bool = False
    ) -> None:
        # Larger types first, as safetensors itself does, so that every tensor starts aligned to its type.
        ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
        header: dict[str, object] = {"__metadata__": metadata}
        offset = 0
        offsets: list[int] = []
        for tensor in ordered:
            end = offset + tensor.n_bytes
            header[tensor.name] = {
                "dtype": DTYPE_CODES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offsets.append(offset)
            offset = end
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        raw += b" " * (-len(raw) % 8)
        raw = len(raw).to_bytes(8, "little") + raw
        start = len(raw)
        self._missing = {
            tensor.name: Place(path.absolute(), start + offset, tensor)
            for tensor, offset in zip(ordered, offsets, strict=True)
        }
        self._file = open(path, "r+b" if keep and path.exists() else "x+b")  # noqa: SIM115 - closed by close()
        self._file.write(raw)
        self._file.flush()
        self._file.truncate(start + offset)
        if hasattr(os, "posix_fallocate") and offset:
            # Reserve the space now: a full disk shows before hours of work, not after.
            os.posix_fallocate(self._file.fileno(), start, offset)

    def write(self, name: str, tensor: Tensor) -> int:
        """Put one tensor's bytes in their place; they are the system's then, and outlive this process.

        Returns their checksum, by which keep() knows them again.
        """
        if name not in self._missing:
            raise ValueError(f"{name}: comes twice, or was not announced")
        place = self._missing.pop(name)
        raw = place.tensor.bytes_of(tensor)
        self._file.seek(place.offset)
        self._file.write(raw)
        self._file.flush()
        return zlib.crc32(raw)

    def place(self, name: str) -> Place:
        """Where another process may put the tensor, see write_at(); keep() tells this one that it did."""
        return self._missing[name]

    def keep(self, name: str, checksum: int) -> bool:
        """Whether the tensor's bytes stand in the file already, whole; it counts as written then."""
        place = self._missing[name]
        found, left = 0, place.tensor.n_bytes
        # Opened anew: only then does a network file system look for what other machines wrote.
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                found, left = zlib.crc32(chunk, found), left - len(chunk)
        if left or found != checksum:
            return False
        del self._missing[name]
        return True

    def sync(self) -> None:
        """Put what was written so far on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were never written: {sorted(self._missing)[:5]}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close without any promise."""
        self._file.close()


@contextmanager
def weights_writer(
    folder: Path, tensors: Sequence[OutputTensor], max_shard_bytes: int, keep: bool = False
) -> Iterator[WeightsWriter]:
    """A writer for a model's weights in `folder`: one file, or shards with an index, named as transformers does.

    keep: go on with the weights that a killed process left there; everything else it left, but its work files, goes.
    """
    writer = WeightsWriter(folder, tensors, max_shard_bytes, keep)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


class WeightsWriter:
    """Routes each tensor to its shard. Use it through weights_writer()."""

    def __init__(self, folder: Path, tensors: Sequence[OutputTensor], max_shard_bytes: int, keep: bool = False) -> None:
        shards = shard(tensors, max_shard_bytes)
        n = len(shards)
        names = [WEIGHTS_NAME] if n == 1 else [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
        self._files: list[TensorFile] = []
        self._home: dict[str, TensorFile] = {}
        self._unsynced: set[TensorFile] = set()
        if keep:
            clear(folder, keep=(*WORK_FILES, *names))
        try:
            for name, members in zip(names, shards, strict=True):
                self._files.append(TensorFile(folder / name, members, {"format": "pt"}, keep))
                self._home |= dict.fromkeys((tensor.name for tensor in members), self._files[-1])
        except BaseException:
            self.abandon()
            raise
        if n > 1:
            index = {
                "metadata": {
                    "total_parameters": sum(t.n_elements for t in tensors if t.dtype.is_floating_point),
                    "total_size": sum(t.n_bytes for t in tensors),
                },
                "weight_map": {t.name: name for name, members in zip(names, shards, strict=True) for t in members},
            }
            write_text(folder / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")

    def write(self, name: str, tensor: Tensor) -> int:
        """Put one tensor's bytes in their place. It has the announced shape and dtype. Returns its checksum."""
        self._unsynced.add(self._home[name])
        return self._home[name].write(name, tensor)

    def place(self, name: str) -> Place:
        """Where the tensor's bytes belong, for another process to put them there."""
        return self._home[name].place(name)

    def keep(self, name: str, checksum: int) -> bool:
        """Whether the tensor stands there already with that checksum; it need not be written then."""
        return self._home[name].keep(name, checksum)

    def sync(self) -> None:
        """Put what was written so far on the disk."""
        while self._unsynced:
            self._unsynced.pop().sync()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def abandon(self) -> None:
        for file in self._files:
            file.abandon()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a few tensors that are already in memory to one file."""
    infos = [OutputTensor(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    file = TensorFile(path, infos, {"format": "pt", **metadata})
    try:
        for name, tensor in tensors.items():
            file.write(name, tensor)
        file.close()
    except BaseException:
        file.abandon()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file and put it on the disk."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
