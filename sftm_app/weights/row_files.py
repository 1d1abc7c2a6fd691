"""Small safetensors files of our own. Where tensors share their first dimension, their leading rows can be read alone.

Files are replaced atomically. They hold what can be computed again, so nothing waits until they are on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sftm_app.caching import replacing
from sftm_app.errors import CheckpointError
from sftm_app.weights.header import FileStamp, Header, read_header
from sftm_app.weights.reader import read_into

_TRIES = 3


def write_rows(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to `path` atomically, over an existing file.

    For read_rows they must share their dtype and first dimension.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    try:
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
    except SafetensorError as error:  # the library's error for a full disk
        raise OSError(str(error)) from None


def read_rows(
    path: Path, row_shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_rows: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the leading rows of every tensor.

    Args:
        path: a file that write_rows wrote.
        row_shapes: the name of each tensor that the file must hold -> the shape of one row.
        dtype: the dtype that the tensors must have.
        max_rows: how many rows to read, or all where there are fewer.

    Returns:
        The tensors on the CPU, and the metadata.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other tensors.
    """

    def shapes_of(header: Header) -> dict[str, tuple[int, ...]]:
        found = {info.name: (info.dtype, info.shape) for info in header.tensors}
        n_rows = header.tensors[0].shape[:1] if header.tensors else ()
        expected = {name: (dtype, (*n_rows, *shape)) for name, shape in row_shapes.items()}
        if found != expected:
            raise CheckpointError(f"{path}: holds {found}, expected {expected}. Remove it.")
        count = min(max_rows, *n_rows)
        return {name: (count, *shape) for name, shape in row_shapes.items()}

    return _read(path, shapes_of)


def read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read every tensor, to the CPU, and the metadata.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return _read(path, lambda header: {info.name: info.shape for info in header.tensors})


def _read(
    path: Path, shapes_of: Callable[[Header], dict[str, tuple[int, ...]]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the start of every tensor, in the shape that `shapes_of` gives it.

    Files are read, not memory-mapped: a mapped file that shrinks would kill the process.
    """
    try:
        for _ in range(_TRIES):
            header = read_header(path)
            shapes = shapes_of(header)
            with FileIO(path) as file:
                # Otherwise another process has replaced it meanwhile.
                if FileStamp.of(file.fileno()) == header.stamp:
                    found = {info.name: torch.empty(shapes[info.name], dtype=info.dtype) for info in header.tensors}
                    for info in header.tensors:
                        read_into(found[info.name], file, info.offset, Lock())
                    return found, header.metadata
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remove it.") from None
    raise CheckpointError(f"{path}: keeps changing while it is read. Remove it.")
