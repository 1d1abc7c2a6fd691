"""Orthogonalise the singular directions of all tasks together ("whitening"), each side by its polar factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.polar import polar, polar_bytes, polar_operations
from sftm_app.linalg.workspace import LayerSize


def orthogonalise(
    factors: Sequence[Factors], weights: Sequence[float], n_threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Orthogonalise all write directions together, and all read directions.

    Args:
        factors: the features of every task, of one shape, R in all.
        weights: a factor on the gains of each.
        n_threads: how many threads may compute at once.

    Returns:
        polar([U_1 .. U_T]) (m, R), polar([V_1 .. V_T])^T (R, n), and the weighted gains (R,).
    """
    sides = (torch.cat([f.U for f in factors], dim=1), torch.cat([f.Vh for f in factors]))
    gains = torch.cat([f.S * weight for f, weight in zip(factors, weights, strict=True)])
    left, right = parallel_map(lambda side: polar(side).factor, sides, n_threads)
    return left, right, gains


def whitening_bytes(size: LayerSize, rank: int) -> int:
    """Bytes of `whiten` for `rank` features in all, the features included, and of the product of its results."""
    sides = sorted(polar_bytes(length, rank) for length in (size.m, size.n))
    whitening = sum(sides) if size.n_at_once > 1 else sides[-1] + size.thin_bytes(rank) // 2
    result = size.thin_bytes(rank) + 4 * size.m * rank + (0 if all(size.thin) else size.matrix_bytes)
    return 2 * size.thin_bytes(rank) + max(whitening, result)


def whitening_operations(size: LayerSize, rank: int) -> float:
    """Operations of the same."""
    sides = polar_operations(size.m, rank) + polar_operations(size.n, rank)
    return sides + 2.0 * size.m * size.n * rank
