"""What the browser gets at most: matrices of 512 x 512 entries, lines of 2048 points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CELLS = 512
MOST_POINTS = 2048


@dataclass(frozen=True, eq=False)
class Reduced:
    """A matrix in at most so many cells. cells: float32 (rows, columns); each stands for a block of down x across.

    within: which entry of its block a cell shows, counted from 0, row by row.
    """

    cells: NDArray[np.float32]
    down: int
    across: int
    within: NDArray[np.uint16]

    @property
    def is_smaller(self) -> bool:
        return self.down > 1 or self.across > 1


def reduce_matrix(matrix: ArrayLike, most: int = MOST_CELLS) -> Reduced:
    """Reduce a matrix (rows x columns) to at most `most` cells a side.

    Of each block the entry of the largest magnitude survives, with its sign; NaN is ignored where a block holds a
    number.
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


def thinned(count: int, keep: Iterable[int] = (), most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Which of `count` points of a line to draw: ascending positions from 0, at most `most`, all of them if they fit.

    The first quarter of `most` stays whole (the strongest features, which people click), the rest is spread evenly and
    ends with the last point. `keep`: positions that stay in any case; those outside 0..count-1 are ignored. There must
    be room for them: at most half of `most`.
    """
    if count <= most:
        return np.arange(count)
    kept = np.unique([place for place in keep if 0 <= place < count]).astype(np.int64)
    if len(kept) > most // 2:
        raise ValueError(f"thinned: {len(kept)} points to keep leave no room among {most}.")
    head = most // 4
    spread = np.linspace(head, count - 1, most - head - len(kept)).round().astype(np.int64)
    return np.unique(np.concatenate([np.arange(head), spread, kept]))
