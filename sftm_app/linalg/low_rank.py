"""A matrix held as the product of two thin ones, as LoRA adapters are: nothing here forms the product unless asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """The (m, n) matrix left @ right, left (m, r), right (r, n), of one dtype and device; r may be 0."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.left.shape[0]), int(self.right.shape[1])

    @property
    def rank(self) -> int:
        """The number of columns r, at least the rank of the matrix."""
        return int(self.left.shape[1])

    def __matmul__(self, other: Tensor) -> Tensor:
        """The product with (n, k), in O((m + n) r k)."""
        return self.left @ (self.right @ other)

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.left * factor, self.right)

    def rows(self, start: int, stop: int) -> LowRank:
        """The rows `start` up to `stop`."""
        return LowRank(self.left[start:stop], self.right)


# A low-rank change of another dtype than its target is multiplied in its own and added by so many elements at a time.
ADD_ELEMENTS = 1 << 20

# What a task does to one linear map: every entry of it, or a product of thin matrices.
Delta: TypeAlias = Tensor | LowRank


def dense(change: Delta) -> Tensor:
    """The matrix itself, (m, n)."""
    return change.left @ change.right if isinstance(change, LowRank) else change


def norm(change: Delta) -> float:
    """Frobenius norm."""
    if isinstance(change, LowRank):
        # Of the small cores in float64: the terms may nearly cancel, and a Gram matrix would lose half of the digits.
        cores = [torch.linalg.qr(factor.double(), mode="r").R for factor in (change.left, change.right.T)]
        return float(torch.linalg.vector_norm(cores[0] @ cores[1].T))
    return float(torch.linalg.vector_norm(change))


def image(change: Delta, directions: Tensor) -> Tensor:
    """change @ directions, (m, k), in the dtype and on the device of `directions` (n, k).

    Multiplied in the change's own dtype: the thin factors of a float64 one may hold large terms that cancel.
    """
    like = change.left if isinstance(change, LowRank) else change
    return (change @ directions.to(like)).to(directions)


def add_to(target: Tensor, change: Delta) -> None:
    """Add a change to an (m, n) tensor in place; a low-rank one without forming it as a whole."""
    if not isinstance(change, LowRank):
        target.add_(change.to(target))
    elif change.left.dtype == target.dtype:
        target.addmm_(change.left.to(target.device), change.right.to(target.device))
    else:
        step = max(1, ADD_ELEMENTS // change.shape[1])
        for rows, left in zip(target.split(step), change.left.split(step), strict=True):
            rows.add_((left @ change.right).to(target))


def weighted_sum(changes: Sequence[Delta], factors: Sequence[float]) -> Delta:
    """sum_t f_t D_t of changes of one shape: low-rank when all of them are (ranks add up), else a dense tensor.

    Asks for one change after the other and lets each go before the next: where a sequence reads them when asked, only
    one is held.
    """
    total: Tensor | None = None
    thin: list[LowRank] = []
    for index, factor in enumerate(factors):
        change = changes[index]
        if isinstance(change, LowRank):
            thin.append(change * factor)
        elif total is None:
            total = change * factor
        else:
            total.add_(change, alpha=factor)
        del change
    if total is None:
        return LowRank(torch.cat([part.left for part in thin], dim=1), torch.cat([part.right for part in thin]))
    for part in thin:
        total.addmm_(part.left, part.right)
    return total
