"""The polar factor of a matrix: the nearest matrix with orthonormal columns.

    A = U diag(s) V^T,   polar(A) = U V^T = A (A^T A)^(-1/2)

Several methods orthogonalise ("whiten") directions by it. It needs no SVD: the eigenvectors of the Gram matrix on the
short side are enough. In float64 they tell every singular value above the rounding of the matrix itself from noise; in
float32 a Gram matrix would lose half of the digits. (Newton-Schulz iterations need fifteen products of this size for
condition 1e4, which takes longer.)

Singular values at or below rcond(dtype, m, n) times the largest are rounding noise. Their directions are arbitrary, and
are left out, so that the factor has the rank of the matrix. (An SVD library returns arbitrary directions there.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.failures import has_not_converged
from sftm_app.linalg.gram_svd import ROWS, gram
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.tolerance import rcond

# Eigenvalues of a Gram matrix in float64 are off by at most this many n * eps of the largest.
EIGEN_NOISE = 4.0


@dataclass(frozen=True, eq=False)
class Polar:
    """The polar factor of an (m, n) matrix of rank r.

    Attributes:
        factor: U V^T, (m, n), in the matrix's dtype.
        gains: (r,) float64, the singular values of the matrix above the noise, ascending.
    """

    factor: Tensor
    gains: Tensor


def polar(matrix: Tensor) -> Polar:
    """Compute the polar factor of a matrix.

    Args:
        matrix: (m, n) float32 or float64, finite.

    Returns:
        A Polar. A matrix of zeros has no gains, and a factor of zeros.

    Raises:
        NumericalError: the matrix is not finite, or no method could factorise it.
    """
    m, n = matrix.shape
    if m < n:
        found = polar(matrix.T)
        return Polar(found.factor.T, found.gains)
    if n == 0:
        return Polar(matrix.clone(), matrix.new_zeros(0, dtype=torch.float64))
    try:
        values, vectors = torch.linalg.eigh(gram(matrix, torch.float64))
    except RuntimeError as error:
        if not has_not_converged(error, matrix.device):
            raise
        return _from_factors(factorise(matrix))
    kept = values > values[-1:].clamp(min=0.0) * noise_share(matrix.dtype, m, n)
    gains, vectors = values[kept].sqrt(), vectors[:, kept]
    weights = (vectors / gains) @ vectors.T
    del vectors
    factor = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for rows, out in zip(matrix.split(ROWS), factor.split(ROWS), strict=True):
        out.copy_(rows.double() @ weights)
    return Polar(factor, gains)


def noise_share(dtype: torch.dtype, m: int, n: int) -> float:
    """The share of the largest eigenvalue of a float64 Gram matrix of an (m, n) matrix that is noise.

    Eigenvalues are squares of singular values, so the share of `rcond` is squared; below it stands the rounding of the
    Gram matrix itself.
    """
    return max(rcond(dtype, m, n) ** 2, EIGEN_NOISE * rcond(torch.float64, min(m, n), 1))


def _from_factors(factors: Factors) -> Polar:
    return Polar(factors.U @ factors.Vh, factors.S.double().flip(0))
