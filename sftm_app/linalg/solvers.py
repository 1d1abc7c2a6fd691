"""Two ways to solve A a = b for a symmetric positive semidefinite A, possibly singular, b possibly out of its range.

Both return a least-squares solution. Nothing here knows what the unknowns mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import NumericalError
from sftm_app.linalg.tolerance import BACKWARD_ERROR_FACTOR, GROWTH_LIMIT


@dataclass(frozen=True, eq=False)
class Solution:
    """a (R,), or (n, R) for n right sides; condition = largest over smallest eigenvalue kept (an estimate); n_dropped
    eigenvectors left out."""

    a: Tensor
    condition: float
    iterations: int = 0
    n_dropped: int = 0
    converged: bool = True


def solve_direct(A: Tensor, b: Tensor, rcond: float, acceptable: Callable[[Tensor], bool]) -> Solution:
    """Cholesky when A is well conditioned, else the least-norm least-squares solution from its eigenvectors.

    A (R, R), b (R,), float64. Eigenvalues at or below rcond * largest are dropped; when the solution is not
    `acceptable`, those up to 1 / GROWTH_LIMIT^2 of the mean eigenvalue, and more while need be. Raises NumericalError
    when the result fails its own check (finite, backward error).
    """
    return _by_cholesky(A, b, rcond, acceptable) or _by_eigenvectors(A, b, rcond, acceptable)


def _by_cholesky(A: Tensor, b: Tensor, rcond: float, acceptable: Callable[[Tensor], bool]) -> Solution | None:
    L, info = torch.linalg.cholesky_ex(A)
    if int(info) != 0:
        return None
    largest = _dominant(lambda x: A @ x, b)
    smallest = 1.0 / _dominant(lambda x: torch.cholesky_solve(x[:, None], L)[:, 0], b)
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


def _dominant(apply: Callable[[Tensor], Tensor], like: Tensor, steps: int = 12) -> float:
    """Largest eigenvalue of a positive semidefinite operator by the power method (an estimate from below)."""
    start = torch.randn(like.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, value = start.to(like), 0.0
    for _ in range(steps):
        x = x / x.norm()
        y = apply(x)
        value = float(x @ y)
        x = y
    return value


def solve_iterative(
    apply: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, max_iterations: int, norm_A: float
) -> Solution:
    """Conjugate residuals (Stiefel 1955) for n right sides b (n, R) at once: `apply` gives the products of A with the
    rows of (n, R), one an iteration.

    They minimise ||b - A a|| over Krylov spaces, so they also converge when A is singular and b out of its range. A
    right side is done when ||r|| <= tolerance ||b|| (solved), or when r is a null vector of A as far as rounding lets
    one see (least squares): ||A r|| <= tolerance ||A|| ||r||, or r^T A r, on which the recurrence lives, within
    rounding of 0, which leaves about sqrt(eps) ||r|| of r in the range. ||A|| is the largest seen, from the lower bound
    `norm_A` up. In the second case a may have drifted along r and is put back to the least-norm solution (Liu,
    Milzarek, Roosta, "Obtaining pseudo-inverse solutions with MINRES", 2023). `converged` also says that r, computed
    afresh, agrees with the recurrence to the backward error allowed. All must have; condition is the worst.
    """
    a, r = torch.zeros_like(b), b.clone()
    p, Ar = r, apply(r)
    Ap, rAr, norm_b = Ar, _dots(r, Ar), _norms(b)
    rounding = 10.0 * float(torch.finfo(b.dtype).eps)
    # Of each right side (alpha, beta): the Lanczos matrix in disguise.
    steps: list[list[tuple[float, float]]] = [[] for _ in b]
    iterations = 0
    while True:
        norm_r, norm_Ar, curvature = _norms(r), _norms(Ar), _dots(Ap, Ap)
        solved = norm_r <= tolerance * norm_b
        stationary = (norm_Ar <= tolerance * norm_A * norm_r) | (rAr <= rounding * norm_A * norm_r.square())
        going = ~(solved | stationary) & (rAr > 0.0) & (curvature > 0.0)
        if iterations >= max_iterations or not bool(going.any()):
            break
        norm_A = max(norm_A, float((norm_Ar / norm_r)[going].max()))
        # Those that are done stay as they are.
        alpha = torch.where(going, rAr / curvature, 0.0)
        a = a + alpha * p
        r = r - alpha * Ap
        Ar = apply(r)
        rAr, previous = _dots(r, Ar), rAr
        beta = torch.where(going, rAr / previous, 0.0)
        p, Ap = r + beta * p, Ar + beta * Ap
        for k, step in enumerate(zip(*(part.flatten().tolist() for part in (going, alpha, beta)), strict=True)):
            if step[0]:
                steps[k].append(step[1:])
        iterations += 1
    converged, missed = bool((solved | stationary).all()), b - apply(a) - r
    for k in range(len(b)):
        converged = converged and _backward_error(a[k], missed[k], b[k], norm_A) <= 1.0
        if bool(stationary[k] & ~solved[k]):
            drift = float(r[k] @ a[k]) / float(r[k] @ r[k])
            if abs(drift) * float(norm_Ar[k]) <= 0.01 * float(norm_r[k]):
                # Else r is not close enough to the null space to take it off.
                a[k] -= drift * r[k]
    return Solution(a, condition=max(map(_ritz_condition, steps)), iterations=iterations, converged=converged)


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """Of the rows of two (n, R): (n, 1)."""
    return torch.linalg.vecdot(x, y)[:, None]


def _norms(x: Tensor) -> Tensor:
    """Of the rows of (n, R): (n, 1)."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _ritz_condition(steps: list[tuple[float, float]]) -> float:
    """Largest over smallest Ritz value, from the recurrence's tridiagonal matrix (Saad, "Iterative Methods", 6.7.3)."""
    steps = [step for step in steps if math.isfinite(step[0]) and step[0] > 0.0 and step[1] >= 0.0]
    if not steps:
        return 1.0
    T = torch.zeros(len(steps), len(steps), dtype=torch.float64)
    for k, (alpha, beta) in enumerate(steps):
        T[k, k] = 1.0 / alpha + (steps[k - 1][1] / steps[k - 1][0] if k else 0.0)
        if k + 1 < len(steps):
            T[k, k + 1] = T[k + 1, k] = math.sqrt(beta) / alpha
    values = torch.linalg.eigvalsh(T)
    smallest = float(values[values > 0.0].min()) if bool((values > 0.0).any()) else float(values[-1])
    return max(1.0, float(values[-1]) / smallest)
