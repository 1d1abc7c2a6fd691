"""The matrix that interferes least with the inputs of any task, without data.

    minimise over D   sum_t || (D - w_t D_t) D_t^T ||^2 / ||D_t||^2

Gradient descent writes the rows of D_t as sums of the inputs that task t saw, so D_t^T D_t stands for their second
moment (Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
Vectors", ICML 2025, arXiv 2503.08099). The minimum solves a normal equation on the side of the inputs,

    D G = B,   G = sum_t D_t^T D_t / ||D_t||^2 (n, n),   B = sum_t w_t D_t D_t^T D_t / ||D_t||^2 (m, n).

With G = Q diag(lambda) Q^T, a filter phi says how much of each eigenvector is kept: D = B Q diag(phi / lambda) Q^T.
With phi = 1 it is the pseudo-inverse's solution, the one of least norm.

Everything is in float64: weak eigenvectors divide by the square of a share of the largest gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import NumericalError
from sftm_app.linalg.failures import has_not_converged
from sftm_app.linalg.gram_svd import ROWS, gram
from sftm_app.linalg.low_rank import Delta, dense
from sftm_app.linalg.polar import EIGEN_OPERATIONS, EIGEN_SQUARES
from sftm_app.linalg.tolerance import rcond


@dataclass(frozen=True, eq=False)
class NormalEquation:
    """D G = B of one layer.

    Attributes:
        G: (n, n) float64, symmetric and positive semidefinite; only on and below the diagonal.
        B: (m, n) float64.
        dtype: of the task matrices.
    """

    G: Tensor
    B: Tensor
    dtype: torch.dtype


def normal_equation(deltas: Sequence[Delta], weights: Sequence[float]) -> NormalEquation:
    """Form the normal equation. Reads one task matrix after the other; tasks without a change count nothing.

    Args:
        deltas: T task matrices (m, n) of one dtype, at least one.
        weights: T factors on the task matrices.
    """
    G: Tensor | None = None
    B: Tensor | None = None
    dtype = torch.float32
    for index, weight in enumerate(weights):
        D = dense(deltas[index])
        dtype = D.dtype
        if G is None or B is None:
            G = D.new_zeros(D.shape[1], D.shape[1], dtype=torch.float64)
            B = torch.zeros_like(D, dtype=torch.float64, memory_format=torch.contiguous_format)
        energy = float(torch.linalg.vector_norm(D, dtype=torch.float64)) ** 2
        if energy > 0.0:
            inputs = gram(D, torch.float64)
            G.add_(inputs, alpha=1 / energy)
            _add_cube(B, D, inputs, weight / energy)
            del inputs
        del D  # before the next one is read
    assert G is not None and B is not None, "a layer has at least one task"
    return NormalEquation(G, B, dtype)


def _add_cube(B: Tensor, D: Tensor, inputs: Tensor, factor: float) -> None:
    """Add factor * D D^T D to B in place, by the product with the smaller Gram matrix. Changes `inputs`, D^T D."""
    m, n = D.shape
    if m >= n:
        cube = _mirror(inputs)
        for rows, out in zip(D.split(ROWS), B.split(ROWS), strict=True):
            out.addmm_(rows.double(), cube, alpha=factor)
        return
    outputs = _mirror(gram(D.T, torch.float64))
    for columns, out in zip(D.split(ROWS, dim=1), B.split(ROWS, dim=1), strict=True):
        out.addmm_(outputs, columns.double(), alpha=factor)


def _mirror(lower: Tensor) -> Tensor:
    """A symmetric matrix from what is on and below its diagonal, in place."""
    for start in range(0, len(lower), ROWS):
        stop = start + ROWS
        corner = lower[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        lower[start:stop, stop:] = lower[stop:, start:stop].T
    return lower


def solve_filtered(equation: NormalEquation, phi: Callable[[Tensor], Tensor]) -> Tensor:
    """Solve D G = B, each eigenvector of G filtered.

    A weak eigenvector is an input direction that all tasks use little. What D writes there is divided by nearly
    nothing: it is as large as elsewhere, but made of what tasks leave there by chance, such as the rounding of stored
    weights.

    Eigenvalues at or below rcond(dtype, m, n)^2 of the largest are noise: they are squares of shares of a gain.

    Args:
        equation: is used up.
        phi: eigenvalues above the noise, (r,) float64 descending, as shares of the largest -> (r,) between 0 and 1.

    Returns:
        D, (m, n), in the dtype of the task matrices.

    Raises:
        NumericalError: G's eigenvectors cannot be computed.
    """
    G, B = equation.G, equation.B
    m, n = B.shape
    delta = torch.zeros_like(B, dtype=equation.dtype)
    try:
        values, vectors = torch.linalg.eigh(G)
    except RuntimeError as error:
        if not has_not_converged(error, G.device):
            raise
        raise NumericalError(
            f"The eigenvectors of an interference matrix of shape {n} x {n} cannot be computed "
            f"({str(error).partition(chr(10))[0]}). Leave this tensor to another merge method."
        ) from error
    n_kept = int((values > max(0.0, float(values[-1])) * rcond(equation.dtype, m, n) ** 2).sum()) if n else 0
    if n_kept == 0:
        return delta
    values, Q = values[n - n_kept :].flip(0), vectors[:, n - n_kept :].flip(1)
    del vectors
    factors = phi(values / values[0]) / values
    kept = int(factors.count_nonzero())
    if not bool(factors[kept:].any()):  # the rest is zero
        Q, factors = Q[:, :kept], factors[:kept]
    for rows, out in zip(B.split(ROWS), delta.split(ROWS), strict=True):
        out.copy_((rows @ Q).mul_(factors) @ Q.T)
    return delta


def interference_bytes(m: int, n: int) -> int:
    """Bytes of both functions for dense float32 task matrices (m, n), the one being read not included."""
    rows = 8 * ROWS
    forming = 8 * m * n + 8 * n**2 + 8 * min(m, n) ** 2 + 8 * n**2 * (m < n) + rows * min(m, n)
    solving = 8 * m * n + EIGEN_SQUARES * 8 * n**2
    result = 8 * m * n + 2 * 8 * n**2 + 4 * m * n + 2 * rows * n
    return max(forming, solving, result)


def interference_operations(m: int, n: int, n_tasks: int) -> float:
    """Operations of both functions, in units of those of large float32 products: float64 counts twice."""
    k = min(m, n)
    forming = 2.0 * m * n**2 + 4.0 * m * n * k + (2.0 * n * m**2 if m < n else 0.0)
    return n_tasks * forming + EIGEN_OPERATIONS * n**3 + 8.0 * m * n**2
