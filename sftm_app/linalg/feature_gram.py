"""A = (U^T U) o (V^T V) of all tasks' features, kept, so that products and readout solves at any rank are fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.preconditioner import BlockPreconditioner, couple, solve_coupled
from sftm_app.linalg.system import gram, starts

# Features count as coupled when the squares of their row of A, without their own task's features, sum to this many
# times what random directions give.
COUPLING_OF_NOTE = 2.0
# Up to this many features in all, every one counts as coupled: their whole system is inverted.
COUPLED_EXACT = 1024


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric matrix on the features kept that is near A, once both have a unit diagonal: its product with (R,)
    float32, zero beyond the features kept, and its diagonal (R,), one beyond them."""

    apply: Callable[[Tensor], Tensor]
    diagonal: Tensor


@dataclass(frozen=True, eq=False)
class Readout:
    """A solution on the features kept: a (R,), zero beyond them, and its readouts A a (R,), of all features, both
    float32; an estimate of the condition."""

    a: Tensor
    product: Tensor
    condition: float


class FeatureGram:
    """The (R, R) float32 matrix A of all features, tasks in order. Kept counts below are leading features per task."""

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.starts = starts(factors)
        self.matrix = gram(factors, dtype=torch.float32)
        self.couplings = couplings(factors, self.block)
        m, n = factors[0].shape
        n_all = self.starts[-1]
        from_level = COUPLING_OF_NOTE * n_all / (m * n) if n_all > COUPLED_EXACT else -1.0
        self._noted = self.couplings > from_level
        # In each of these orders every rank of one kind, a count or a share of energy, keeps a leading part.
        self._orders = [_by_count(factors), _by_energy(factors)]
        self._coupled: list[BlockPreconditioner] = []

    def block(self, i: int, j: int) -> Tensor:
        """The features of task i (rows) against those of task j, (r_i, r_j); a view."""
        return self.matrix[self.starts[i] : self.starts[i + 1], self.starts[j] : self.starts[j + 1]]

    def kept(self, counts: Sequence[int]) -> Tensor:
        """Which features are kept, (R,) bool."""
        marks = torch.zeros(self.starts[-1], dtype=torch.bool)
        for start, count in zip(self.starts, counts, strict=False):
            marks[start : start + count] = True
        return marks

    def product(self, a: Tensor, counts: Sequence[int]) -> Tensor:
        """A a, (R,) float32, for a (R,) float32 that is zero beyond the features kept: reads only their rows."""
        total = torch.zeros_like(a)
        for start, count in zip(self.starts, counts, strict=False):
            total.addmv_(self.matrix[start : start + count].T, a[start : start + count])
        return total

    def solve(
        self, b: Tensor, counts: Sequence[int], tolerance: float, operator: Operator | None = None
    ) -> Readout | None:
        """B a = b (R,) float32 on the features kept, beyond which b is zero; B is the operator, by default A itself.

        To an absolute `tolerance` in ||b - B a|| and, as far as is seen, in (a - a*)^T B (a - a*), which for A is
        ||D(a) - D*||_F. None when the features kept are too nearly dependent for that: no answer is given then.
        """
        if not bool(b.any()):
            return Readout(torch.zeros_like(b), torch.zeros_like(b), 1.0)
        if self.dependent(counts):
            return None
        kept = self.kept(counts)
        best = max(self._in_orders(), key=lambda one: one.prefix(kept))

        def apply(x: Tensor) -> Tensor:
            return self.product(x, counts).mul_(kept)

        operator = operator or Operator(apply, torch.ones_like(b))
        found = solve_coupled(operator.apply, b, best, best.prefix(kept), tolerance, operator.diagonal)
        if found is None:
            return None
        product = self.product(found.a, counts)
        reached = product * kept if operator.apply is apply else operator.apply(found.a)
        missed = float((b - reached).norm())
        return Readout(found.a, product, found.condition) if missed <= 2.0 * tolerance else None

    def dependent(self, counts: Sequence[int]) -> bool:
        """Whether the features kept are seen to be too nearly dependent to be solved for."""
        kept = self.kept(counts)
        return any(one.dependent(kept) for one in self._in_orders())

    def _in_orders(self) -> list[BlockPreconditioner]:
        if not self._coupled:
            self._coupled = [couple(self.matrix, order[self._noted[order]]) for order in self._orders]
        return self._coupled


def couplings(factors: Sequence[Factors], block: Callable[[int, int], Tensor] | None = None) -> Tensor:
    """Per feature the sum of squares of its row of A, without the features of its own task: (R,) float32.

    block: gives A's block of two tasks i < j; without it each is formed, and let go.
    """
    offsets = starts(factors)
    total = torch.zeros(offsets[-1])
    for j, second in enumerate(factors):
        for i, first in enumerate(factors[:j]):
            found = block(i, j) if block else (first.U.T @ second.U).mul_(first.Vh @ second.Vh.T)
            total[offsets[i] : offsets[i + 1]] += torch.linalg.vector_norm(found, dim=1).square_()
            total[offsets[j] : offsets[j + 1]] += torch.linalg.vector_norm(found, dim=0).square_()
    return total


def _by_count(factors: Sequence[Factors]) -> Tensor:
    return torch.cat([torch.arange(f.rank) for f in factors]).argsort(stable=True)


def _by_energy(factors: Sequence[Factors]) -> Tensor:
    """By the share of its task's energy that comes before a feature."""
    before = []
    for f in factors:
        energy = (f.S.double() / f.S[:1].double()).square()
        before.append((energy.cumsum(0) - energy) / energy.sum())
    return torch.cat(before).argsort(stable=True)
