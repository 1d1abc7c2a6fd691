"""Tables whose rows are put in another order, because the vocabularies of base and tasks differ.

A checkpoint with row maps looks like any other: its tables have the rows of the merged vocabulary, and a reader finds
each row where it is stored. So whatever reads a tensor sees base and tasks aligned, row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sftm_app.weights.header import FileStamp, TensorInfo

# A row that lies this close to the mean of all rows, compared with how far rows lie from it, is as
# `resize_token_embeddings` made it: the mean plus a millionth of the spread, in half precision with its rounding.
UNTRAINED = 1e-2
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class StoredTable:
    """A tensor as it is stored: its file, the file's stamp, and its place there."""

    file: Path
    stamp: FileStamp
    info: TensorInfo

    @property
    def n_rows(self) -> int:
        """The length of the first dimension."""
        return self.info.shape[0]

    @property
    def width(self) -> int:
        """The number of values in a row."""
        return torch.Size(self.info.shape[1:]).numel()


@dataclass(frozen=True, eq=False)
class Blend:
    """Rows that the base lacks: the weighted mean of the tasks that have them.

    A row that a task has but did not train counts only where no task trained it.

    Attributes:
        tables: the tasks' tables.
        rows: for each table the row in it for every row of the merged table, -1 where it has none; (N,) int64.
        weights: the tasks' weights.
        base: the base's table.
        spare: the row of the base's padding at the same place, -1 where the base has none; (N,) int64.
    """

    tables: tuple[StoredTable, ...]
    rows: tuple[Tensor, ...]
    weights: tuple[float, ...]
    base: StoredTable
    spare: Tensor


@dataclass(frozen=True, eq=False)
class RowMap:
    """Where the rows (or columns) of one table of the merged vocabulary are stored.

    Attributes:
        table: the checkpoint's own table, as stored.
        own: the row in it for every row of the merged table, -1 where it has none; (N,) int64.
        other: where the other rows come from: the base's map, a mean over tasks, or zeros (None).
        axis: the dimension that counts the vocabulary, 0 or 1.
    """

    table: StoredTable
    own: Tensor
    other: RowMap | Blend | None = None
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the merged table."""
        shape = list(self.table.info.shape)
        shape[self.axis] = len(self.own)
        return tuple(shape)

    @property
    def dtype(self) -> torch.dtype:
        """A dtype that holds the table's own rows and the base's without rounding either."""
        ours = self.table.info.dtype
        if not isinstance(self.other, RowMap) or ours == self.other.dtype:
            return ours
        wide = torch.float64 if torch.float64 in (ours, self.other.dtype) else torch.float32
        return wide if ours.is_floating_point else ours

    @property
    def info(self) -> TensorInfo:
        """What a checkpoint says of the merged table. Its place in the file means nothing."""
        shape, dtype = self.shape, self.dtype
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        return TensorInfo(self.table.info.name, dtype, shape, self.table.info.offset, n_bytes)

    @cached_property
    def digest(self) -> str:
        """Identifies what the table is made of, apart from the content of the files."""
        found = hashlib.sha256(repr((self.table, self.axis)).encode())
        found.update(self.own.numpy().tobytes())
        if isinstance(self.other, RowMap):
            found.update(self.other.digest.encode())
        elif self.other is not None:
            found.update(repr((self.other.tables, self.other.weights, self.other.base)).encode())
            for rows in (*self.other.rows, self.other.spare):
                found.update(rows.numpy().tobytes())
        return found.hexdigest()


# Reads rows from the first index up to the second, (rows, width), in the stored dtype.
ReadRows = Callable[[StoredTable, int, int], Tensor]


def read_mapped(mapped: RowMap, read: ReadRows, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows `start` to `stop` of a merged table, (rows, width); where the map's axis is 1, always the whole table.

    Args:
        mapped: the map.
        read: reads stored rows.
        start, stop: the first row, and the row after the last; None for the end.

    Returns:
        A tensor in the map's dtype, on the CPU.
    """
    if mapped.axis == 1:
        return _read_columns(mapped, read)
    own = mapped.own[start:stop]
    found = torch.empty(len(own), mapped.table.width, dtype=mapped.dtype)
    for first, last, row in _runs(own):
        if row >= 0:
            found[first:last] = read(mapped.table, row, row + last - first)
        else:
            found[first:last] = _others(mapped.other, read, start + first, start + last)
    return found


def _others(other: RowMap | Blend | None, read: ReadRows, start: int, stop: int) -> Tensor:
    if other is None:
        return torch.zeros(())
    return read_mapped(other, read, start, stop) if isinstance(other, RowMap) else _blended(other, read, start, stop)


def _read_columns(mapped: RowMap, read: ReadRows) -> Tensor:
    stored = read(mapped.table, 0, mapped.table.n_rows)
    found = torch.zeros(mapped.shape, dtype=mapped.dtype)
    has = mapped.own >= 0
    found[:, has] = stored[:, mapped.own[has]].to(found.dtype)
    if isinstance(mapped.other, RowMap) and not bool(has.all()):
        found[:, ~has] = _read_columns(mapped.other, read)[:, ~has].to(found.dtype)
    return found


def _runs(rows: Tensor) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive rows, or of -1: their first place, the place after their last, and their first row."""
    if not len(rows):
        return
    steps = rows[1:] - rows[:-1]
    joined = torch.where(rows[1:] < 0, steps == 0, (steps == 1) & (rows[:-1] >= 0))
    ends = [*(torch.nonzero(~joined).flatten() + 1).tolist(), len(rows)]
    start = 0
    for end in ends:
        yield start, end, int(rows[start])
        start = end


def _blended(blend: Blend, read: ReadRows, start: int, stop: int) -> Tensor:
    """Rows that the base lacks, in float32."""
    n = stop - start
    rows = [own[start:stop] for own in blend.rows]
    spared = blend.spare[start:stop]
    found = [_gather(table, own, read) for table, own in zip(blend.tables, rows, strict=True)]
    spare = _gather(blend.base, spared, read)
    has = torch.stack([*(own >= 0 for own in rows), torch.zeros(n, dtype=torch.bool)])
    nowhere = ~has.any(0) & (spared < 0)
    statistics = _mean_row(blend.base, read) if bool(nowhere.any() | (has.sum(0) > 1).any()) else None
    if statistics is not None:
        untrained = [
            _untrained(values, spare.to(table.info.dtype).float(), spared >= 0, *statistics)
            for values, table in zip(found, blend.tables, strict=True)
        ]
        trained = has & ~torch.stack([*untrained, torch.ones(n, dtype=torch.bool)])
        has = torch.where(trained.any(0), trained, has)
    total, shares = torch.zeros(n, blend.base.width), torch.zeros(n, 1)
    for values, own, weight in zip(found, has, blend.weights, strict=False):
        total[own] += weight * values[own]
        shares[own] += weight
    total = torch.where(shares > 0, total / shares, spare)
    if statistics is not None:
        total[nowhere] = statistics[0]
    return total


def _untrained(found: Tensor, spare: Tensor, spared: Tensor, mean: Tensor, spread: float) -> Tensor:
    """Which rows of a task are zero, or the base's padding, or as a resize makes them; (rows,) bool."""
    as_padding = spared & (found == spare).all(1)
    as_resized = (found - mean).norm(dim=1) <= UNTRAINED * (spread + float(mean.norm()))
    return as_padding | as_resized | (found == 0).all(1)


def _gather(table: StoredTable, rows: Tensor, read: ReadRows) -> Tensor:
    """Rows of a stored table in float32; zeros for -1."""
    found = torch.zeros(len(rows), table.width)
    for first, last, row in _runs(rows):
        if row >= 0:
            found[first:last] = read(table, row, row + last - first)
    return found


def _mean_row(table: StoredTable, read: ReadRows) -> tuple[Tensor, float]:
    """The mean of a table's rows, (width,) float32, and the root mean square of the rows' distances from it."""
    total, squares = torch.zeros(table.width, dtype=torch.float64), 0.0
    for start in range(0, table.n_rows, _CHUNK_ROWS):
        rows = read(table, start, min(start + _CHUNK_ROWS, table.n_rows)).double()
        total += rows.sum(0)
        squares += float(rows.square().sum())
    mean = total / table.n_rows
    variance = max(0.0, squares / table.n_rows - float(mean.square().sum()))
    return mean.float(), variance**0.5
