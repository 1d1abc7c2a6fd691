"""Tasks that ask for opposite things, so that no superposition keeps both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.system import block
from sftm_app.linalg.tolerance import CONFLICT_ERROR, conflict_cosine


class Conflict(NamedTuple):
    """Two tasks that oppose each other.

    Attributes:
        first, second: their indices, first < second.
        cosine: <D_i, D_j> / (||D_i|| ||D_j||), in [-1, 0).
    """

    first: int
    second: int
    cosine: float


def find_conflicts(
    shape: tuple[int, int],
    wanted: Sequence[Tensor],
    readouts: Sequence[Tensor],
    inner: Callable[[int, int], float],
) -> tuple[Conflict, ...]:
    """Find the pairs of tasks that oppose each other where at least one of them loses its readout.

    Args:
        shape: (m, n) of the task matrices.
        wanted: (r_t,) per task, the gains that were asked for.
        readouts: (r_t,) per task, what the superposition reads out instead.
        inner: gives <D_i, D_j> of the task matrices whose gains are `wanted`, for i < j.

    Returns:
        The conflicts, ordered by the indices of the pair.
    """
    sizes = [length(part) for part in wanted]
    lost = [length(r - w) > CONFLICT_ERROR * size for r, w, size in zip(readouts, wanted, sizes, strict=True)]
    limit = conflict_cosine(*shape)
    found = []
    for i in range(len(wanted)):
        for j in range(i + 1, len(wanted)):
            if (lost[i] or lost[j]) and sizes[i] and sizes[j]:
                cosine = inner(i, j) / (sizes[i] * sizes[j])
                if cosine < limit:
                    found.append(Conflict(i, j, max(-1.0, cosine)))
    return tuple(found)


def inner_product(first: Factors, a: Tensor, second: Factors, b: Tensor) -> float:
    """<D(a), D(b)> of two matrices with the features of `first` and `second` at the gains a (r,) and b (s,)."""
    return float(a.double() @ (block(first, second).double() @ b.double()))


def length(values: Tensor) -> float:
    """Euclidean norm, computed in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
