"""The polar factor of a matrix: the nearest matrix with orthonormal columns.

    A = U diag(s) V^T,   polar(A) = U V^T = A (A^T A)^(-1/2)

Several methods orthogonalise ("whiten") directions by it. It needs no SVD: the eigenvectors of the Gram matrix on the
short side are enough. In float64 they tell every singular value above the rounding of the matrix itself from noise; in
float32 a Gram matrix would lose half of the digits. (Newton-Schulz iterations need fifteen products of this size for
condition 1e4, which takes longer.)

Singular values below a millionth of the largest are the rounding of the matrix and of its Gram matrix. Their directions
are arbitrary, and are left out, so that the factor has the rank of the matrix. (An SVD library returns arbitrary
directions there.) That is less than `tolerance.rcond` drops: here a weak direction counts as much as a strong one, and
in a square matrix of random directions the weakest is often near 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.failures import has_not_converged
from sftm_app.linalg.gram_svd import ROWS, gram
from sftm_app.linalg.svd import factorise

# Rounding leaves singular values of up to this many eps of the largest, and in a float64 Gram matrix eigenvalues of up
# to that many n * eps of the largest.
ROUNDING, GRAM_ROUNDING = 8.0, 4.0
# Float64 matrices of the Gram matrix's size that eigh holds: it, the eigenvectors and LAPACK's work space.
EIGEN_SQUARES = 4
# What eigh of an (n, n) float64 matrix takes, in units of n^3 operations of large float32 products: 0.16 s at n = 768
# on a core that does 57e9 of them a second.
EIGEN_OPERATIONS = 20.0


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
    kept = values > values[-1:].clamp(min=0.0) * noise_share(matrix.dtype, n)
    gains, vectors = values[kept].sqrt(), vectors[:, kept]
    weights = (vectors / gains) @ vectors.T
    del vectors
    factor = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for rows, out in zip(matrix.split(ROWS), factor.split(ROWS), strict=True):
        out.copy_(rows.double() @ weights)
    return Polar(factor, gains)


def noise_share(dtype: torch.dtype, n: int) -> float:
    """The share of the largest eigenvalue at or below which those of a Gram matrix are noise.

    Args:
        dtype: of the matrix. Its Gram matrix is in float64.
        n: the matrix's shorter side.
    """
    eps, eps_64 = float(torch.finfo(dtype).eps), float(torch.finfo(torch.float64).eps)
    return max((ROUNDING * eps) ** 2, GRAM_ROUNDING * n * eps_64)


def polar_bytes(m: int, n: int) -> int:
    """Bytes of `polar` of a float32 (m, n) matrix: its eigenvectors in float64, then the factor. Not the matrix."""
    m, n = max(m, n), min(m, n)
    rows = min(ROWS, m)
    return max(EIGEN_SQUARES * 8 * n**2 + 8 * rows * n, 8 * n**2 + 4 * m * n + 16 * rows * n)


def polar_operations(m: int, n: int) -> float:
    """Operations of `polar` of an (m, n) matrix, in units of those of large float32 products."""
    m, n = max(m, n), min(m, n)
    # Half of a Gram matrix, and a product with (n, n) twice, in float64, which takes twice as long.
    return 2.0 * m * n**2 + 4.0 * (m + n) * n**2 + EIGEN_OPERATIONS * n**3


def _from_factors(factors: Factors) -> Polar:
    return Polar(factors.U @ factors.Vh, factors.S.double().flip(0))
