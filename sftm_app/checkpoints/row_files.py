"""Small safetensors files of ours; where their tensors share the first dimension, leading rows can be read alone.

A file appears complete or not at all. It is for what can be made again: nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sftm_app.checkpoints.header import DTYPE_CODES
from sftm_app.errors import CheckpointError

TEMPORARY_SUFFIX = ".tmp"


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
    try:
        # Read, not mapped: a mapped file that shrinks would kill the process.
        with safe_open(path, "pt", backend="pread") as file:
            names = set(file.keys())
            if names != set(row_shapes):
                raise CheckpointError(f"{path}: holds {sorted(names)}, expected {sorted(row_shapes)}. Remove it.")
            slices = {name: file.get_slice(name) for name in row_shapes}
            found = {name: (piece.get_dtype(), list(piece.get_shape())) for name, piece in slices.items()}
            n_rows = next(iter(found.values()))[1][:1]
            wanted = {name: (DTYPE_CODES[dtype], [*n_rows, *shape]) for name, shape in row_shapes.items()}
            if found != wanted:
                raise CheckpointError(f"{path}: holds {found}, expected {wanted}. Remove it.")
            count = min(most, *n_rows)
            return {name: piece[:count] for name, piece in slices.items()}, file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remove it.") from None


def read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor, on the CPU, and the metadata.

    Raises
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, "pt", backend="pread") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Remove it.") from None
