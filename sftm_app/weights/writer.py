"""Writes safetensors files tensor by tensor, in any order.

The header is written first, since the plan knows all sizes; then each tensor's bytes go to their place. What an
interrupted run has written can be resumed.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from sftm_app.caching import write_text
from sftm_app.weights.file_names import INDEX_SUFFIX, STEMS
from sftm_app.weights.header import DTYPE_CODES, shape_in_file
from sftm_app.weights.partial import WORK_FILES, clear

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written, with its dtype and shape in the file.

    Attributes:
        folder: the folder below the output that its file lies in; a name that begins with it is written without it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    folder: str = ""

    @property
    def stored_name(self) -> str:
        """Its name in the file."""
        return self.name.removeprefix(f"{self.folder}/") if self.folder else self.name

    @property
    def n_elements(self) -> int:
        """The number of values."""
        return torch.Size(self.shape).numel()

    @property
    def n_bytes(self) -> int:
        """The size in the file."""
        return self.n_elements * self.dtype.itemsize

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """The bytes of a tensor as they are written. Raises ValueError for another shape or dtype."""
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(f"{self.name}: {tensor.dtype} {tuple(tensor.shape)} instead of {self}")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw: memoryview = flat.view(torch.uint8).numpy().data
        return raw


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes belong: at byte `offset` of `path`, which has its header and full length already."""

    path: Path
    offset: int
    tensor: OutputTensor


def write_at(place: Place, tensor: Tensor) -> int:
    """Write a tensor to its place in a file that another process created, and wait until it is on the disk.

    Processes may write different tensors at the same time.

    Returns:
        The checksum of its bytes.

    Raises:
        OSError: the file does not exist or cannot be written.
    """
    raw = place.tensor.bytes_of(tensor)
    with open(place.path, "r+b") as file:
        file.seek(place.offset)
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return zlib.crc32(raw)


def shard(tensors: Sequence[OutputTensor], max_shard_bytes: int) -> list[list[OutputTensor]]:
    """Split tensors into files of at most `max_shard_bytes`, exactly as transformers does.

    The order is kept, except that a tensor above the limit gets its own file before the one being filled.
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
    """One safetensors file. Its header is written when it is created; its tensors follow in any order.

    Args:
        path: the file.
        tensors: everything that it will hold.
        metadata: free text for the header.
        resume: reuse what an interrupted run left of this file; see `accept`.

    Raises:
        ValueError: a tensor is written twice, with another shape or dtype than announced, or never.
    """

    def __init__(
        self, path: Path, tensors: Sequence[OutputTensor], metadata: dict[str, str], resume: bool = False
    ) -> None:
        # Larger dtypes first, as safetensors does, so that every tensor is aligned.
        ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
        ends = list(accumulate((tensor.n_bytes for tensor in ordered), initial=0))
        header: dict[str, object] = {"__metadata__": metadata}
        for tensor, offsets in zip(ordered, pairwise(ends), strict=True):
            header[tensor.stored_name] = {
                "dtype": DTYPE_CODES[tensor.dtype],
                "shape": shape_in_file(tensor.dtype, tensor.shape),
                "data_offsets": list(offsets),
            }
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        raw += b" " * (-len(raw) % 8)
        raw = len(raw).to_bytes(8, "little") + raw
        places = (
            Place(path.absolute(), len(raw) + start, tensor) for tensor, start in zip(ordered, ends, strict=False)
        )
        self._missing = {place.tensor.name: place for place in places}
        self._file = open(path, "r+b" if resume and path.exists() else "x+b")  # noqa: SIM115 - closed by close()
        self._file.write(raw)
        self._file.flush()
        self._file.truncate(len(raw) + ends[-1])
        if hasattr(os, "posix_fallocate") and ends[-1]:
            # Reserve the space now, so that a full disk shows before hours of work and not after.
            os.posix_fallocate(self._file.fileno(), len(raw), ends[-1])

    def write(self, name: str, tensor: Tensor) -> int:
        """Write one tensor, and return the checksum of its bytes. They survive this process, not a power failure."""
        if name not in self._missing:
            raise ValueError(f"{name}: is written twice, or was not announced")
        place = self._missing.pop(name)
        raw = place.tensor.bytes_of(tensor)
        self._file.seek(place.offset)
        self._file.write(raw)
        self._file.flush()
        return zlib.crc32(raw)

    def place(self, name: str) -> Place:
        """Where another process may write the tensor with write_at(); call accept() afterwards."""
        return self._missing[name]

    def accept(self, name: str, checksum: int) -> bool:
        """Check whether the file holds the tensor already, by its checksum; if so, it counts as written."""
        place = self._missing[name]
        found, left = 0, place.tensor.n_bytes
        # Open the file again: only then does a network file system show what other machines wrote.
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                found, left = zlib.crc32(chunk, found), left - len(chunk)
        if left or found != checksum:
            return False
        del self._missing[name]
        return True

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the complete file, once it is on the disk."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were never written: {sorted(self._missing)[:5]}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


@contextmanager
def weights_writer(
    folder: Path, tensors: Sequence[OutputTensor], max_shard_bytes: int, resume: bool = False, stem: str = STEMS[0]
) -> Iterator[WeightsWriter]:
    """A writer for a model's weights: one file, or shards with an index, named as transformers names them.

    Args:
        folder: where the files go.
        tensors: everything that will be written.
        max_shard_bytes: the largest size of a file that holds several tensors.
        resume: reuse the weights that an interrupted run left. Its other files are removed, except its work files.
        stem: what the files are called; those of other modules are called as by transformers.
    """
    writer = WeightsWriter(folder, tensors, max_shard_bytes, resume, stem)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.abandon()
        raise


class WeightsWriter:
    """Passes each tensor to its shard. Use it through weights_writer(); for its methods see TensorFile."""

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[OutputTensor],
        max_shard_bytes: int,
        resume: bool = False,
        stem: str = STEMS[0],
    ) -> None:
        self._files: list[TensorFile] = []
        self._file_of: dict[str, TensorFile] = {}
        self._unsynced: set[TensorFile] = set()
        sets = {
            place: _names_of_shards(
                shard([tensor for tensor in tensors if tensor.folder == place], max_shard_bytes),
                STEMS[0] if place else stem,
            )
            for place in dict.fromkeys(tensor.folder for tensor in tensors)
        }
        if resume:
            clear(folder, keep=(*WORK_FILES, *sets.get("", {}), *filter(None, sets)))
        try:
            for place, shards in sets.items():
                self._create(folder / place, shards, resume, STEMS[0] if place else stem)
        except BaseException:
            self.abandon()
            raise

    def _create(self, folder: Path, shards: dict[str, list[OutputTensor]], resume: bool, stem: str) -> None:
        """Create the files of one folder, and their index if there are several."""
        folder.mkdir(exist_ok=True)
        for name, members in shards.items():
            self._files.append(TensorFile(folder / name, members, {"format": "pt"}, resume))
            self._file_of |= dict.fromkeys((tensor.name for tensor in members), self._files[-1])
        if len(shards) > 1:
            tensors = [tensor for members in shards.values() for tensor in members]
            index = {
                "metadata": {
                    "total_parameters": sum(t.n_elements for t in tensors if t.dtype.is_floating_point),
                    "total_size": sum(t.n_bytes for t in tensors),
                },
                "weight_map": {t.stored_name: name for name, members in shards.items() for t in members},
            }
            write_text(folder / f"{stem}{INDEX_SUFFIX}", json.dumps(index, indent=2, sort_keys=True) + "\n", sync=True)

    def write(self, name: str, tensor: Tensor) -> int:
        """Write one tensor of the announced shape and dtype, and return its checksum."""
        self._unsynced.add(self._file_of[name])
        return self._file_of[name].write(name, tensor)

    def place(self, name: str) -> Place:
        """Where another process may write the tensor."""
        return self._file_of[name].place(name)

    def accept(self, name: str, checksum: int) -> bool:
        """Check whether the tensor is already written, by its checksum."""
        return self._file_of[name].accept(name, checksum)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        while self._unsynced:
            self._unsynced.pop().sync()

    def close(self) -> None:
        """Close all files, once they are complete and on the disk."""
        for file in self._files:
            file.close()

    def abandon(self) -> None:
        """Close all files as they are."""
        for file in self._files:
            file.abandon()


def _names_of_shards(shards: list[list[OutputTensor]], stem: str) -> dict[str, list[OutputTensor]]:
    """The shards of one folder by the names of their files."""
    n = len(shards)
    numbers = [""] if n == 1 else [f"-{i:05d}-of-{n:05d}" for i in range(1, n + 1)]
    names = [f"{stem}{number}.safetensors" for number in numbers]
    return dict(zip(names, shards, strict=True))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors that are already in memory to one file."""
    infos = [OutputTensor(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    file = TensorFile(path, infos, {"format": "pt", **metadata})
    try:
        for name, tensor in tensors.items():
            file.write(name, tensor)
        file.close()
    except BaseException:
        file.abandon()
        raise
