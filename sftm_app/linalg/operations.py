"""Floating-point operations of factorising, in units of those of large float32 products: slower ones count for more."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.linalg.gram_svd import GRAM_MIN, SINGLE_RANK
from sftm_app.linalg.polar import EIGEN_OPERATIONS
from sftm_app.linalg.workspace import LayerSize

# gesdd of a small matrix (m, n), in units of m n k.
SMALL_SVD = 20.0
# Factorising a low-rank matrix (m, n) of rank r in float64, in units of (m + n) r^2.
THIN_SVD = 30.0


def factorise_operations(size: LayerSize, computed: Sequence[int]) -> float:
    """Operations of factorising every task's matrix, `computed` leading features each."""
    total = 0.0
    for rank, thin in zip(computed, size.thin, strict=True):
        if thin:
            total += thin_operations(size.m, size.n, rank)
        elif size.k < GRAM_MIN:
            total += SMALL_SVD * size.m * size.n * size.k
        else:
            # Half of the Gram matrix, its eigenvectors, and the products with those kept.
            single = 0.5 if rank <= SINGLE_RANK * size.k else 1.0
            total += single * (2.0 * size.m * size.n * size.k + EIGEN_OPERATIONS * size.k**3)
            total += 2.0 * size.m * size.n * rank
    return total


def thin_operations(m: int, n: int, rank: int) -> float:
    """Operations of factorising a low-rank (m, n) matrix from the product of two thin ones."""
    return THIN_SVD * (m + n) * float(rank) ** 2
