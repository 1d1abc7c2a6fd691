"""A matrix held as the product of two thin ones, as in a LoRA adapter. Nothing here forms the product unless asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# A low-rank delta in another dtype than its target is multiplied in its own, so many elements at a time.
ADD_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False)
class LowRank:
    """The (m, n) matrix left @ right, with left (m, r) and right (r, n) of one dtype and device; r may be 0."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
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
        """The rows from `start` up to, not including, `stop`."""
        return LowRank(self.left[start:stop], self.right)


# What a task or a merge adds to one weight.
Delta: TypeAlias = Tensor | LowRank


def dense(delta: Delta) -> Tensor:
    """The matrix itself, (m, n)."""
    return delta.left @ delta.right if isinstance(delta, LowRank) else delta


def core(delta: LowRank) -> Tensor:
    """A small matrix (at most r x r) with the same singular values, in float64.

    From the QR of both factors: their terms may nearly cancel, and a Gram matrix would lose half of the digits.
    """
    left, right = (torch.linalg.qr(factor.double(), mode="r").R for factor in (delta.left, delta.right.T))
    return left @ right.T


def norm(delta: Delta) -> float:
    """Frobenius norm."""
    return float(torch.linalg.vector_norm(core(delta) if isinstance(delta, LowRank) else delta))


def singular_values(delta: Delta) -> Tensor:
    """Singular values, descending: of a low-rank delta at most r."""
    return torch.linalg.svdvals(core(delta) if isinstance(delta, LowRank) else delta)


def image(delta: Delta, directions: Tensor) -> Tensor:
    """Multiply a delta (m, n) by directions (n, k).

    The product is taken in the delta's own dtype: thin factors in float64 may hold large terms that cancel.

    Returns:
        (m, k) in the dtype and on the device of `directions`.
    """
    like = delta.left if isinstance(delta, LowRank) else delta
    return (delta @ directions.to(like)).to(directions)


def add_to(target: Tensor, delta: Delta) -> None:
    """Add a delta to an (m, n) tensor in place, without forming a low-rank one as a whole."""
    if not isinstance(delta, LowRank):
        target.add_(delta.to(target))
    elif delta.left.dtype == target.dtype:
        target.addmm_(delta.left.to(target.device), delta.right.to(target.device))
    else:
        step = max(1, ADD_ELEMENTS // delta.shape[1])
        for rows, left in zip(target.split(step), delta.left.split(step), strict=True):
            rows.add_((left @ delta.right).to(target))


def weighted_sum(deltas: Sequence[Delta], factors: Sequence[float]) -> Delta:
    """Add up sum_t f_t D_t.

    Asks for one delta after the other and lets each go before the next, so that a sequence which reads them on demand
    holds one at a time.

    Args:
        deltas: of one shape.
        factors: one per delta.

    Returns:
        Low-rank if all deltas are (their ranks add up), otherwise dense.
    """
    total: Tensor | None = None
    thin: list[LowRank] = []
    for index, factor in enumerate(factors):
        delta = deltas[index]
        if isinstance(delta, LowRank):
            thin.append(delta * factor)
        elif total is None:
            total = delta * factor
        else:
            total.add_(delta, alpha=factor)
        del delta
    if total is None:
        return LowRank(torch.cat([part.left for part in thin], dim=1), torch.cat([part.right for part in thin]))
    for part in thin:
        total.addmm_(part.left, part.right)
    return total
