"""Bounds on what is sent to the browser: matrices of 512 x 512 entries, lines of 2048 points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CELLS = 512
MOST_POINTS = 2048


@dataclass(frozen=True, eq=False)
class Reduced:
    """A matrix reduced to fewer cells.

    Attributes:
        cells: float32 (rows, columns); each cell stands for a block of the matrix.
        down, across: the size of a block.
        within: which entry of its block a cell shows, counted from 0, row by row.
    """

    cells: NDArray[np.float32]
    down: int
    across: int
    within: NDArray[np.uint16]

    @property
    def is_smaller(self) -> bool:
        """Whether a block has more than one entry."""
        return self.down > 1 or self.across > 1


def reduce_matrix(matrix: ArrayLike, most: int = MOST_CELLS) -> Reduced:
    """Reduce a matrix to at most `most` cells on each side.

    Each block keeps its entry with the largest magnitude, with its sign. NaN is ignored if the block holds a number.
    """
    full = np.asarray(matrix, dtype=np.float32)
    if full.ndim != 2:
        raise ValueError(f"reduce_matrix: expected a matrix, found {full.ndim} dimensions.")
    down, across = (max(1, -(-size // most)) for size in full.shape)
    if full.size == 0 or (down, across) == (1, 1):
        return Reduced(full, 1, 1, np.zeros(full.shape, dtype=np.uint16))
    padding = [(0, -full.shape[0] % down), (0, -full.shape[1] % across)]
    padded = np.pad(full, padding, constant_values=np.nan)
    rows, columns = padded.shape[0] // down, padded.shape[1] // across
    blocks = padded.reshape(rows, down, columns, across).swapaxes(1, 2).reshape(rows, columns, down * across)
    within = np.where(np.isnan(blocks), -1, np.abs(blocks)).argmax(axis=2)
    cells = np.take_along_axis(blocks, within[..., None], axis=2)[..., 0]
    return Reduced(cells, down, across, within.astype(np.uint16))


def points_to_draw(count: int, keep: Iterable[int] = (), most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Choose which points of a line to draw.

    The first `most` / 4 points are all drawn, because they are the strongest features, which people click. The rest is
    spread evenly and ends with the last point.

    Args:
        count: how many points the line has.
        keep: positions to draw in any case, at most `most` / 2; those outside 0..count-1 are ignored.
        most: how many points to draw at most.

    Returns:
        Positions from 0, ascending; all of them if they fit.

    Raises:
        ValueError: there are too many positions to keep.
    """
    if count <= most:
        return np.arange(count)
    kept = np.unique([place for place in keep if 0 <= place < count]).astype(np.int64)
    if len(kept) > most // 2:
        raise ValueError(f"points_to_draw: {len(kept)} points to keep leave no room among {most}.")
    head = most // 4
    spread = np.linspace(head, count - 1, most - head - len(kept)).round().astype(np.int64)
    return np.unique(np.concatenate([np.arange(head), spread, kept]))
