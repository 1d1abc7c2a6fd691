"""Singular features from the eigenvectors of the Gram matrix on the short side: D^T D = V S^2 V^T and U = D V / S.

A Gram matrix squares the gains. In a dtype with rounding eps, everything below sqrt(eps) of the largest gain is lost,
and a feature turns by about eps (s_1 / s_k)^2 over its relative distance from the next. So float32 serves only the
leading features, and only if the last of them is strong enough. In float64 everything that a float32 matrix can tell
from noise stands out (at a side of 64 that is 8e-6 of the largest gain, whose square is 3e5 eps), and is determined
better than by an SVD in float32: for eight 384 x 384 tasks at full rank, D* was 1e-6 to 2e-4 from the exact one, where
gesdd gave 2e-5 to 1e-2. CPU seconds of one thread, compared with gesdd in float32:

                        768 x 768     3072 x 768    768 x 3072
    gesdd               0.15          0.39          1.05
    float64, all        0.16          0.25          0.25
    float32, leading    0.08          0.11          0.11
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# With a shorter side an SVD takes a millisecond or two, whatever the method.
GRAM_MIN = 64
# The weakest feature kept, as a share of the largest gain, for which float32 will do. D* of eight tasks cut to an
# eighth of their rank was 4e-6 from the exact one at a share of 0.5 or more, 1e-5 at 0.07 and 7e-5 at 0.03.
SINGLE_SHARE = 0.05
# Beyond this share of the features, computing them in float32 costs as much as float64 does.
SINGLE_RANK = 0.5
# Write directions of gains weaker than this share are multiplied in float64: the rounding of a product with float32
# directions is a share of the largest gain, not of their own.
WEAK = 0.01
ROWS = 1024
N_COLUMN_BLOCKS = 4


def svd_by_gram(matrix: Tensor, keep: Callable[[Tensor], int], few: bool) -> tuple[Tensor, Tensor, Tensor, str]:
    """Factorise by the Gram matrix.

    Args:
        matrix: (m, n) float32.
        keep: says how many of all gains, (min(m, n),) float64 descending, to keep.
        few: whether that will be few, so that float32 may do.

    Returns:
        U (m, r), S (r,) descending, Vh (r, n), float32 on the matrix's device; and "gram float32" or "gram".
    """
    m, n = matrix.shape
    if m < n:
        U, S, Vh, how = svd_by_gram(matrix.T, keep, few)
        return Vh.T, S, U.T, how
    if few:
        gains, V = _eigen(matrix, torch.float32)
        r = keep(gains)
        if r <= SINGLE_RANK * n and bool((gains[:r] > SINGLE_SHARE * gains[:1]).all()):
            return *_features(matrix, gains[:r], V[:, :r]), "gram float32"
        del V
    gains, V = _eigen(matrix, torch.float64)
    r = keep(gains)
    return *_features(matrix, gains[:r], V[:, :r]), "gram"


def _eigen(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All gains of a long matrix, float64 descending, and its read directions (n, n) in `dtype`."""
    values, V = torch.linalg.eigh(gram(matrix, dtype))
    return values.flip(0).double().clamp_(min=0.0).sqrt_(), V.flip(1)


def gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """matrix^T matrix, (n, n) in `dtype`, on and below the diagonal, all that eigh reads. Converts ROWS rows a time."""
    n = matrix.shape[1]
    G = matrix.new_zeros(n, n, dtype=dtype)
    step = -(-n // N_COLUMN_BLOCKS)
    for rows in matrix.split(ROWS):
        part = rows.to(dtype)
        for start in range(0, n, step):
            columns = slice(start, start + step)
            G[start:, columns].addmm_(part[:, start:].T, part[:, columns])
    return G


def _features(matrix: Tensor, gains: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write directions, gains and read directions, strongest first, from the products with the read directions kept."""
    n_strong = int((gains > WEAK * gains[:1]).sum())
    V32 = V.to(torch.float32, copy=True)  # a copy, because a view would hold all of V
    image = matrix.new_empty(len(matrix), V.shape[1])
    image[:, :n_strong] = matrix @ V32[:, :n_strong]
    if n_strong < V.shape[1]:
        weak = V[:, n_strong:].double()
        for rows, written in zip(matrix.split(ROWS), image[:, n_strong:].split(ROWS), strict=True):
            written.copy_(rows.double() @ weak)
    # ROWS rows at a time: a norm along the first dimension is several times as slow.
    S = torch.stack([rows.square().sum(0) for rows in image.split(ROWS)]).sum(0).sqrt_()
    order = S.argsort(descending=True, stable=True)
    if not bool((order.diff() > 0).all()):
        image, S, V32 = image[:, order], S[order], V32[:, order]
    return image.div_(S.clamp_min(torch.finfo(S.dtype).tiny)), S, V32.T
