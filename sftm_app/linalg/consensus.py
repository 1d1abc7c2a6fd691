"""Combine tensors that are made one after the other, so that one is held at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def add_up(weights: Sequence[float], make: Callable[[int], Tensor]) -> Tensor:
    """The weighted sum of tensors.

    Args:
        weights: one per tensor, at least one.
        make: gives the tensor of an index, of one shape and dtype. It may be changed.
    """
    total: Tensor | None = None
    for index, weight in enumerate(weights):
        part = make(index).mul_(weight)
        total = part if total is None else total.add_(part)
        del part  # before the next one is made
    assert total is not None, "at least one weight"
    return total


def elect(weights: Sequence[float], make: Callable[[int], Tensor]) -> Tensor:
    """Entry by entry, the weighted mean of the values whose sign has the larger weighted sum: TIES, steps 2 and 3.

        sum_{t in A} w_t D_t / sum_{t in A} w_t,   A = tensors with sign(D_t) = sign(sum_t w_t D_t), entry by entry

    Where the sum is 0 the result is 0. The sums of the positive and of the negative values say who wins, and are the
    totals of those that agree. So every tensor is made once.

    Args:
        weights: one positive weight per tensor, at least one.
        make: as for `add_up`.

    References: Yadav et al., NeurIPS 2023, arXiv 2306.01708, algorithm 1.
    """
    sums: list[Tensor] = []
    for index, weight in enumerate(weights):
        part = make(index)
        sums = sums or [torch.zeros_like(part) for _ in range(4)]
        up, n_up, down, n_down = sums
        above = part.clamp_min(0)
        up.add_(above, alpha=weight)
        n_up.add_(above.sign_(), alpha=weight)
        del above
        part.clamp_max_(0)
        down.add_(part, alpha=weight)
        n_down.sub_(part.sign_(), alpha=weight)
        del part  # before the next one is made
    votes = up + down
    tiny = torch.finfo(votes.dtype).tiny  # where nothing agrees the total is 0
    up.div_(n_up.clamp_min_(tiny)).mul_(votes > 0)
    down.div_(n_down.clamp_min_(tiny)).mul_(votes < 0)
    return up.add_(down)
