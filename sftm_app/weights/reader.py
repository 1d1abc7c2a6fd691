"""Reads tensors of a checkpoint on demand, and refuses once its files have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sftm_app.errors import CheckpointError, NumericalError
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp, read_header
from sftm_app.weights.quantised import Scaling
from sftm_app.weights.row_maps import RowMap, StoredTable, read_mapped


class TensorReader:
    """Reads tensors of one checkpoint. Threads may share it.

    Files are read, not memory-mapped: a mapped file that shrinks would kill the process with SIGBUS, and its pages
    would count as this process's memory.
    """

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._checkpoint = checkpoint
        self._stack = stack
        self._handles: dict[Path, FileIO] = {}
        self._lock = Lock()

    def __call__(self, name: str, row: int | None = None, span: tuple[int, int] | None = None) -> Tensor:
        """Read a tensor, or a part of it, as stored.

        Args:
            name: the tensor.
            row: read only this entry along the first dimension, such as one expert of a stack.
            span: read only the elements from the first index up to the second, in stored order, as a vector.

        Returns:
            The tensor on the CPU, in its stored dtype and shape; a quantised weight as the numbers that it stands for,
            in float32.

        Raises:
            CheckpointError: the file changed since the checkpoint was opened, or cannot be read.
        """
        info = self._checkpoint.tensors[name]
        shape = info.shape if row is None else info.shape[1:]
        if (mapped := self._checkpoint.rows.get(name)) is not None:
            return self._read_mapped(mapped, shape, row, span)
        if (scaling := self._checkpoint.scalings.get(name)) is not None:
            return self._read_scaled(name, scaling, row, span).reshape(shape if span is None else -1)
        tensor = torch.empty(shape if span is None else (span[1] - span[0],), dtype=info.dtype)
        start = (span[0] if span else 0) + (row or 0) * torch.Size(shape).numel()
        self._fill(tensor, self._checkpoint.stored(name), start)
        return tensor

    def _fill(self, tensor: Tensor, table: StoredTable, start: int) -> None:
        """Fill `tensor` with the stored elements from `start` on."""
        file = table.file
        try:
            _refuse_changed(table, FileStamp.of(file))
            with self._lock:
                if file not in self._handles:
                    opened = self._stack.enter_context(FileIO(file))
                    # Another file may have been put there since.
                    _refuse_changed(table, FileStamp.of(opened.fileno()))
                    self._handles[file] = opened
            read_into(tensor, self._handles[file], table.info.offset + start * tensor.itemsize, self._lock)
        except OSError as error:
            name = table.info.name
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read ({error}). Start again.") from None

    def _read_scaled(self, name: str, scaling: Scaling, row: int | None, span: tuple[int, int] | None) -> Tensor:
        """Read whole rows of a quantised weight that cover what is asked for, and take it out of them."""
        width, rows = scaling.stored.shape[-1], scaling.stored.shape[-2]
        first, last = (span or (0, torch.Size(scaling.stored.shape).numel())) if row is None else (0, 0)
        if row is not None:
            size = rows * width if len(scaling.stored.shape) > 2 else width
            first, last = (
                (row * size, (row + 1) * size) if span is None else (row * size + span[0], row * size + span[1])
            )
        start, stop = first // width, -(-last // width)
        file = self._checkpoint.files[name]
        values = self._read_rows(StoredTable(file, self._checkpoint.stamps[file], scaling.stored), start, stop, width)
        stamp = self._checkpoint.stamps[scaling.scale_file]
        scales = torch.empty(scaling.scale.shape, dtype=scaling.scale.dtype)
        self._fill(scales, StoredTable(scaling.scale_file, stamp, scaling.scale), 0)
        return scaling.apply(values, scales, start).reshape(-1)[first - start * width : last - start * width]

    def _read_mapped(
        self, mapped: RowMap, shape: tuple[int, ...], row: int | None, span: tuple[int, int] | None
    ) -> Tensor:
        """Read from a table whose rows are in the order of the merged vocabulary."""
        if mapped.axis:
            whole = read_mapped(mapped, self._read_rows).reshape(mapped.shape)
            whole = whole if row is None else whole[row]
            return whole if span is None else whole.reshape(-1)[slice(*span)]
        if row is not None:
            return read_mapped(mapped, self._read_rows, row, row + 1).reshape(shape)
        if span is None:
            return read_mapped(mapped, self._read_rows).reshape(shape)
        width = max(1, mapped.table.width)
        first = span[0] // width
        rows = read_mapped(mapped, self._read_rows, first, -(-span[1] // width))
        return rows.reshape(-1)[span[0] - first * width : span[1] - first * width]

    def _read_rows(self, table: StoredTable, start: int, stop: int, width: int | None = None) -> Tensor:
        """Rows `start` to `stop`; with a width, of the tensor seen as rows of that many values."""
        width = table.width if width is None else width
        tensor = torch.empty(stop - start, width, dtype=table.info.dtype)
        self._fill(tensor, table, start * width)
        return tensor

    def finite(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        row: int | None = None,
        span: tuple[int, int] | None = None,
    ) -> Tensor:
        """Read a tensor as `__call__` does, convert it to a floating-point `dtype`, and check that it is finite.

        Raises:
            CheckpointError: see `__call__`.
            NumericalError: it holds NaN or Inf; names the file, the tensor and their number.
        """
        tensor = self(name, row, span).to(dtype)
        # A sum takes one pass instead of three. It is finite unless a value is not, or it overflows.
        if tensor.numel() and not torch.isfinite(tensor.sum()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            total = tensor.numel()
            if n_bad and span is not None:
                # Count them in the whole tensor, in pieces no larger than this one.
                total = torch.Size(self._checkpoint.tensors[name].shape).numel()
                spans = ((start, min(start + tensor.numel(), total)) for start in range(0, total, tensor.numel()))
                n_bad = sum(int((~torch.isfinite(self(name, span=each).to(dtype))).sum()) for each in spans)
            if n_bad:
                raise NumericalError(
                    f"{self._checkpoint.files[name]}: tensor {name!r} holds {n_bad} values that are NaN or infinite "
                    f"out of {total}. The checkpoint is broken: train or download it again."
                )
        return tensor


def _refuse_changed(table: StoredTable, stamp: FileStamp) -> None:
    if stamp != table.stamp:
        raise CheckpointError(f"{table.file}: was changed while in use. Start again.")


@contextmanager
def open_reader(checkpoint: Checkpoint) -> Iterator[TensorReader]:
    """A TensorReader whose files are closed at the end of the block."""
    with ExitStack() as stack:
        yield TensorReader(checkpoint, stack)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a small safetensors file, such as a task's head or a set of samples.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    header = read_header(path)
    try:
        with safe_open(path, "pt", backend="pread") as file:
            return {info.name: file.get_tensor(info.name) for info in header.tensors}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Start again.") from None


def read_into(tensor: Tensor, file: FileIO, offset: int, lock: Lock) -> None:
    """Fill a contiguous tensor with the bytes of `file` from `offset` on.

    Args:
        lock: guards the file's position, on systems where a read has to set it.

    Raises:
        OSError: the file ends too early, or cannot be read.
    """
    wanted: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    while wanted:
        # One call gives at most 2 GiB on Linux, and is refused for that much on macOS.
        if hasattr(os, "preadv"):
            n_read = os.preadv(file.fileno(), [wanted[: 1 << 30]], offset)
        else:
            with lock:
                file.seek(offset)
                n_read = file.readinto(wanted)
        if not n_read:
            raise OSError("the file is cut off")
        wanted, offset = wanted[n_read:], offset + n_read
