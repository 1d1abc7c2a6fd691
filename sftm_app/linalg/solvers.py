"""Two solvers of A a = b for a symmetric positive semidefinite A. A may be singular and b out of its range.

Both return a least-squares solution. Neither knows what the unknowns mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from sftm_app.errors import NumericalError
from sftm_app.linalg.tolerance import BACKWARD_ERROR_FACTOR, GROWTH_LIMIT


class Outcome(Enum):
    """How a system was solved. `value` is the word in reports; `sentence` says what it means and what to do."""

    sentence: str

    DIRECT = "direct", "The system was solved directly."
    ITERATIVE = "iterative", "The system was solved by iteration, to the tolerance asked for."
    FELL_BACK = (
        "iterative->direct",
        "The iteration did not converge, or its solution was too large, so the system was solved directly.",
    )
    STOPPED_EARLY = (
        "iterative (stopped early)",
        "The iteration was stopped early: an exact solution would be so large that it harms the model. "
        "Choose a lower rank to have the system solved to the end.",
    )

    def __new__(cls, word: str, sentence: str) -> Outcome:
        member = object.__new__(cls)
        member._value_ = word
        member.sentence = sentence
        return member


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution of one system.

    Attributes:
        a: (R,).
        condition: largest over smallest eigenvalue kept, an estimate.
        iterations: of the iterative solver.
        n_dropped: how many eigenvectors the direct solver left out.
        converged: whether the iteration reached its tolerance.
    """

    a: Tensor
    condition: float
    iterations: int = 0
    n_dropped: int = 0
    converged: bool = True


def solve_direct(A: Tensor, b: Tensor, rcond: float, acceptable: Callable[[Tensor], bool]) -> Solution:
    """Solve by Cholesky where A is well conditioned, otherwise by its eigenvectors (least norm, least squares).

    Args:
        A: (R, R) float64.
        b: (R,) float64.
        rcond: eigenvalues at or below this share of the largest are dropped.
        acceptable: judges a solution. If it refuses one, eigenvalues up to 1 / GROWTH_LIMIT^2 of the mean are dropped
            too, then more as long as it refuses.

    Raises:
        NumericalError: the result fails its check (finite, backward error).
    """
    return _by_cholesky(A, b, rcond, acceptable) or _by_eigenvectors(A, b, rcond, acceptable)


def _by_cholesky(A: Tensor, b: Tensor, rcond: float, acceptable: Callable[[Tensor], bool]) -> Solution | None:
    L, info = torch.linalg.cholesky_ex(A)
    if int(info) != 0:
        return None
    start = torch.randn(b.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(b)
    largest, _ = dominant_eigenpair(lambda x: A @ x, start)
    inverse, _ = dominant_eigenpair(lambda x: torch.cholesky_solve(x[:, None], L)[:, 0], start)
    smallest = 1.0 / inverse
    a = torch.cholesky_solve(b[:, None], L)[:, 0]
    if not smallest > rcond * largest or _backward_error(a, b - A @ a, b, largest) > 1.0 or not acceptable(a):
        return None
    return Solution(a, condition=max(1.0, largest / smallest))


def _by_eigenvectors(A: Tensor, b: Tensor, rcond: float, acceptable: Callable[[Tensor], bool]) -> Solution:
    values, Q = torch.linalg.eigh(A)
    seen = Q.T @ b
    largest, level = float(values[-1]), rcond * float(values[-1])
    while True:
        first = int((values <= level).sum())
        a = Q[:, first:] @ (seen[first:] / values[first:])
        if acceptable(a) or not level < largest:  # also when NaN
            break
        level = max(4.0 * level, float(values.mean()) / GROWTH_LIMIT**2)
    if _backward_error(a, Q[:, first:].T @ (b - A @ a), b, largest) > 1.0:
        raise NumericalError(
            f"The superposition of {b.numel()} features could not be solved: the direct solver missed its accuracy. "
            "Lower the rank, or leave this tensor to another merge method."
        )
    smallest = float(values[first]) if first < b.numel() else largest
    return Solution(a, condition=largest / smallest, n_dropped=first)


def _backward_error(a: Tensor, r: Tensor, b: Tensor, norm_A: float) -> float:
    """||r|| / (||A|| ||a|| + ||b||) in units of its limit; infinite when anything is not finite."""
    limit = BACKWARD_ERROR_FACTOR * b.numel() * float(torch.finfo(b.dtype).eps)
    scale = norm_A * float(a.norm()) + float(b.norm())
    error = float(r.norm()) / (limit * scale) if scale != 0.0 else 0.0
    return error if math.isfinite(error) else math.inf


def dominant_eigenpair(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = 12) -> tuple[float, Tensor]:
    """Estimate the largest eigenvalue of a positive semidefinite operator by the power method.

    Args:
        apply: the operator on (R,).
        start: (R,), where to begin; R may be 0.
        steps: how many products to take.

    Returns:
        The eigenvalue, from below (1 for R = 0), and a unit vector (R,) near its eigenvector.
    """
    x, value = start, 1.0
    for _ in range(steps if len(start) else 0):
        x = x / x.norm().clamp_min(1e-30)
        y = apply(x)
        value, x = float(x @ y), y
    return value, x / x.norm().clamp_min(1e-30)


def solve_iterative(
    apply: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, max_iterations: int, norm_A: float
) -> Solution:
    """Solve by conjugate residuals (Stiefel, "Relaxationsmethoden bester Strategie", 1955).

    They minimise ||b - A a|| over Krylov spaces, so they also converge when A is singular and b out of its range. The
    iteration ends when ||r|| <= tolerance ||b|| (solved), or when r is a null vector of A as far as rounding can tell
    (least squares): ||A r|| <= tolerance ||A|| ||r||, or r^T A r, which drives the recurrence, is within rounding of 0,
    which leaves about sqrt(eps) ||r|| of r in the range. In the second case a may have drifted along r and is put back
    to the least-norm solution (Liu, Milzarek, Roosta, "Obtaining pseudo-inverse solutions with MINRES", 2023).

    Args:
        apply: the product of A with (R,).
        b: (R,).
        tolerance: relative residual to reach.
        max_iterations: products to take at most.
        norm_A: a lower bound of ||A||; the largest value seen replaces it.

    Returns:
        A Solution. `converged` also says that the residual, computed once more from a, agrees with the recurrence to
        the backward error allowed.
    """
    a, r = torch.zeros_like(b), b.clone()
    p, Ar = r, apply(r)
    Ap, rAr, norm_b = Ar, _dot(r, Ar), float(b.norm())
    rounding = 10.0 * float(torch.finfo(b.dtype).eps)
    steps: list[tuple[float, float]] = []
    while True:
        norm_r, norm_Ar, curvature = float(r.norm()), float(Ar.norm()), _dot(Ap, Ap)
        solved = norm_r <= tolerance * norm_b
        stationary = norm_Ar <= tolerance * norm_A * norm_r or rAr <= rounding * norm_A * norm_r**2
        if solved or stationary or len(steps) >= max_iterations or not (rAr > 0.0 and curvature > 0.0):
            break
        norm_A = max(norm_A, norm_Ar / norm_r)
        alpha = rAr / curvature
        a, r = a + alpha * p, r - alpha * Ap
        Ar = apply(r)
        rAr, previous = _dot(r, Ar), rAr
        beta = rAr / previous
        p, Ap = r + beta * p, Ar + beta * Ap
        steps.append((alpha, beta))
    missed = b - apply(a) - r
    converged = (solved or stationary) and _backward_error(a, missed, b, norm_A) <= 1.0
    if stationary and not solved:
        drift = float(r @ a) / float(r @ r)
        # Otherwise r is not close enough to the null space to be taken off.
        if abs(drift) * norm_Ar <= 0.01 * norm_r:
            a = a - drift * r
    values = ritz_values(steps)
    condition = values[-1] / values[0] if values else 1.0
    return Solution(a, condition=condition, iterations=len(steps), converged=converged)


def _dot(x: Tensor, y: Tensor) -> float:
    # Pairwise summation loses less in float32 than a BLAS dot product.
    return float((x * y).sum())


def ritz_values(steps: Sequence[tuple[float, float]]) -> list[float]:
    """Estimate eigenvalues of A from the (alpha, beta) of conjugate gradients or residuals.

    They are those of the recurrence's tridiagonal matrix (Saad, "Iterative Methods for Sparse Linear Systems", 6.7.3).

    Returns:
        Those above 0, ascending.
    """
    steps = [step for step in steps if math.isfinite(step[0]) and step[0] > 0.0 and math.isfinite(step[1])]
    T = torch.zeros(len(steps), len(steps), dtype=torch.float64)
    for k, (alpha, beta) in enumerate(steps):
        T[k, k] = 1.0 / alpha + (steps[k - 1][1] / steps[k - 1][0] if k else 0.0)
        if k + 1 < len(steps):
            T[k, k + 1] = T[k + 1, k] = math.sqrt(max(beta, 0.0)) / alpha
    return [value for value in torch.linalg.eigvalsh(T).tolist() if value > 0.0]
