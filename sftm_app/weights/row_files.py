"""Small safetensors files of ours; where their tensors share the first dimension, leading rows can be read alone.

A file appears complete or not at all. It is for what can be made again: nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sftm_app.errors import CheckpointError
from sftm_app.weights.filling import fill
from sftm_app.weights.header import FileStamp, Header, read_header

TEMPORARY_SUFFIX = ".tmp"
_TRIES = 3


def write_rows(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to `path`, over what stands there, through a file beside it.

    For read_rows they must be of one dtype and first dimension. Raises OSError; nothing is left behind then.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, SafetensorError):  # how the library words a full disk
            raise OSError(str(error)) from None
        raise


def read_rows(
    path: Path, row_shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, most: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The first `most` rows (fewer where there are fewer) of every tensor, on the CPU, and the metadata.

    row_shapes: the name and the shape of a row of each tensor that must be there, and no others.

    Raises
        CheckpointError: there is no such file, it is damaged, or it holds something else.
    """

    def rows_of(header: Header) -> dict[str, tuple[int, ...]]:
        found = {info.name: (info.dtype, info.shape) for info in header.tensors}
        n_rows = header.tensors[0].shape[:1] if header.tensors else ()
        wanted = {name: (dtype, (*n_rows, *shape)) for name, shape in row_shapes.items()}
        if found != wanted:
            raise CheckpointError(f"{path}: holds {found}, expected {wanted}. Remove it.")
        count = min(most, *n_rows)
        return {name: (count, *shape) for name, shape in row_shapes.items()}

    return _read(path, rows_of)


def read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor, on the CPU, and the metadata.

    Raises
        CheckpointError: there is no such file, or it is damaged.
    """
    return _read(path, lambda header: {info.name: info.shape for info in header.tensors})


def _read(
    path: Path, choose: Callable[[Header], dict[str, tuple[int, ...]]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The beginning of every tensor, as long as the shape that is chosen for it.

    Read, not mapped: a mapped file that shrinks would kill the process. The library reads all to give a part.
    """
    try:
        for _ in range(_TRIES):
            header = read_header(path)
            shapes = choose(header)
            with FileIO(path) as file:
                # Else another process has put a new one in its place.
                if FileStamp.of(file.fileno()) == header.stamp:
                    found = {info.name: torch.empty(shapes[info.name], dtype=info.dtype) for info in header.tensors}
                    for info in header.tensors:
                        fill(found[info.name], file, info.offset, Lock())
                    return found, header.metadata
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remove it.") from None
    raise CheckpointError(f"{path}: changes all the time. Remove it.")
