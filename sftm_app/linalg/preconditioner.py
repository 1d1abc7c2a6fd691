"""Conjugate gradients with an exact inverse of the features that are coupled, for solves that must take milliseconds.

Random features hardly see each other, so A is nearly the identity on most of them and what makes its condition are the
features that tasks share. These are few and lead: the inverse of their block of A, beside the identity for the rest, is
a preconditioner that leaves four or five iterations where there were tens.

The block's Cholesky factor is nested: with features in order, its first p rows and columns belong to the first p
features, and so do those of its inverse. One factor in the order of rank therefore serves every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.solvers import Solution

# The inverse of the block takes 0.2 s and 17 MB at this many features, and a millisecond a product.
COUPLED_MAX = 2048
# A pivot of the Cholesky factor is the squared distance (A has a unit diagonal) of a feature from the span of those
# before it. Below this share float32 knows too few digits of it, and shared features call for a choice among solutions.
PIVOT_MIN = 1e-3
POWER_STEPS = 6
MAX_ITERATIONS = 60


@dataclass(frozen=True, eq=False)
class BlockPreconditioner:
    """The block of A of the features `order` (p,), as L (p, p) with L L^T = A and its inverse, both lower triangular.

    ended: the feature at which the block had to end, nearly dependent on those before it, or None. high, low: unit
    vectors (p,) near the eigenvectors of the block's largest and smallest eigenvalue.
    """

    order: Tensor
    L: Tensor
    inverse: Tensor
    ended: int | None
    high: Tensor
    low: Tensor

    def prefix(self, kept: Tensor) -> int:
        """How many features lead the order that are all kept; kept (R,) bool."""
        return int(kept[self.order].long().cumprod(0).sum())

    def dependent(self, kept: Tensor) -> bool:
        """Whether the features kept, (R,) bool, are seen to be nearly dependent."""
        return self.ended is not None and bool(kept[self.ended]) and self.prefix(kept) == len(self.order)

    def apply(self, r: Tensor, count: int) -> Tensor:
        """The preconditioner: the inverse of the block of the first `count` features, the identity elsewhere; (R,)."""
        z = r.clone()
        chosen, W = self.order[:count], self.inverse[:count, :count]
        z[chosen] = torch.mv(W.T, torch.mv(W, r[chosen]))
        return z

    def extremes(self, count: int) -> tuple[float, float]:
        """Largest and smallest eigenvalue of the first `count` features' block, from inside; (1, 1) for none."""
        if count == 0:
            return 1.0, 1.0
        L, W = self.L[:count, :count], self.inverse[:count, :count]
        largest, _ = _power(lambda x: L @ (L.T @ x), self.high[:count])
        inverse, _ = _power(lambda x: W.T @ (W @ x), self.low[:count])
        return largest, 1.0 / inverse


def couple(A: Tensor, order: Tensor) -> BlockPreconditioner:
    """The block of A (R, R) of the features `order`, at most COUPLED_MAX, which come in the order of rank."""
    chosen = order[:COUPLED_MAX]
    block = A[chosen][:, chosen]
    L, info = torch.linalg.cholesky_ex(block)
    while int(info):
        block = block[: int(info) - 1, : int(info) - 1]
        L, info = torch.linalg.cholesky_ex(block)
    bad = (L.diagonal().square() < PIVOT_MIN).nonzero()
    p = int(bad[0]) if len(bad) else len(L)
    L = L[:p, :p].contiguous()
    inverse = torch.linalg.solve_triangular(L, torch.eye(p, dtype=L.dtype), upper=False)
    start = torch.randn(p, generator=torch.Generator().manual_seed(0))
    _, high = _power(lambda x: L @ (L.T @ x), start)
    _, low = _power(lambda x: inverse.T @ (inverse @ x), start)
    return BlockPreconditioner(chosen[:p], L, inverse, int(chosen[p]) if p < len(chosen) else None, high, low)


def _power(apply: Callable[[Tensor], Tensor], start: Tensor) -> tuple[float, Tensor]:
    """The largest eigenvalue of a positive definite operator, a little below it, and its vector."""
    x, value = start, 1.0
    for _ in range(POWER_STEPS if len(start) else 0):
        x = x / x.norm().clamp_min(1e-30)
        y = apply(x)
        value, x = float(x @ y), y
    return value, x / x.norm().clamp_min(1e-30)


def solve_coupled(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    coupled: BlockPreconditioner,
    count: int,
    tolerance: float,
    diagonal: Tensor | None = None,
) -> Solution | None:
    """Preconditioned conjugate gradients (Hestenes and Stiefel, 1952) for A a = b, (R,) float32.

    diagonal: A's where it is not all ones; the preconditioner is for A scaled to a unit diagonal then, and so is the
    condition.

    Stops when both ||r|| and, as far as the preconditioner tells, sqrt(r^T A^-1 r), which is the Frobenius norm of the
    error of D(a), are at most `tolerance`. None when that does not happen within MAX_ITERATIONS, or A is not definite.
    """
    root = torch.ones_like(b) if diagonal is None else diagonal.sqrt()

    def precondition(r: Tensor) -> Tensor:
        return coupled.apply(r / root, count) / root

    a, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    p, rz = z, float(r @ z)
    steps: list[tuple[float, float]] = []
    while not (math.sqrt(max(rz, 0.0)) <= tolerance and float(r.norm()) <= tolerance):
        Ap = apply(p)
        curvature = float(p @ Ap)
        if not (rz > 0.0 and curvature > 0.0) or len(steps) == MAX_ITERATIONS:
            return None
        alpha = rz / curvature
        a, r = a + alpha * p, r - alpha * Ap
        z = precondition(r)
        rz, previous = float(r @ z), rz
        p = z + (rz / previous) * p
        steps.append((alpha, rz / previous))
    largest, smallest = coupled.extremes(count)
    rest = _ritz_values(steps)
    largest, smallest = max([largest, *rest]), min([smallest, *rest])
    return Solution(a, condition=largest / smallest, iterations=len(steps))


def _ritz_values(steps: list[tuple[float, float]]) -> list[float]:
    """Of the preconditioned operator, from the recurrence (Saad, "Iterative Methods", 6.7.3)."""
    T = torch.zeros(len(steps), len(steps), dtype=torch.float64)
    for k, (alpha, beta) in enumerate(steps):
        T[k, k] = 1.0 / alpha + (steps[k - 1][1] / steps[k - 1][0] if k else 0.0)
        if k + 1 < len(steps):
            T[k, k + 1] = T[k + 1, k] = math.sqrt(max(beta, 0.0)) / alpha
    values = torch.linalg.eigvalsh(T)
    return [float(value) for value in values if value > 0.0]
