"""A = (U^T U) o (V^T V) of all tasks' features, stored, so that products and `readout` solves at any rank are fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors, cumulative_energy
from sftm_app.linalg.preconditioner import BlockPreconditioner, solve_preconditioned
from sftm_app.linalg.system import block, gram, starts

# A feature counts as coupled if the squares in its row of A, without its own task's features, sum to this many times
# what random directions give.
COUPLING_OF_NOTE = 2.0
# Up to this many features in all, every one counts as coupled: their whole system is inverted.
COUPLED_EXACT = 1024


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric matrix on the features kept that is close to A once both have a unit diagonal.

    Attributes:
        apply: its product with (R,) float32, zero for the features that are cut off.
        diagonal: (R,), one for the features that are cut off.
    """

    apply: Callable[[Tensor], Tensor]
    diagonal: Tensor


@dataclass(frozen=True, eq=False)
class GramSolution:
    """A solution on the features kept.

    Attributes:
        a: (R,) float32, zero for the features that are cut off.
        readouts: A a, (R,) float32, of all features.
        condition: an estimate.
    """

    a: Tensor
    readouts: Tensor
    condition: float


class FeatureGram:
    """A of all features, tasks in order. `counts` below is the number of leading features kept, per task.

    Attributes:
        starts: where each task's features begin, then R.
        matrix: (R, R) float32.
        couplings: see couplings().
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.starts = starts(factors)
        self.matrix = gram(factors, dtype=torch.float32)
        self.couplings = couplings(factors, self.block)
        m, n = factors[0].shape
        n_all = self.starts[-1]
        from_level = COUPLING_OF_NOTE * n_all / (m * n) if n_all > COUPLED_EXACT else -1.0
        self._noted = self.couplings > from_level
        # In each of these orders, every rank of one kind (a count, or a share of energy) keeps a leading part.
        by_count = torch.cat([torch.arange(f.rank) for f in factors]).argsort(stable=True)
        by_energy = torch.cat([cumulative_energy(f.S)[: f.rank] for f in factors]).argsort(stable=True)
        self._orders = [by_count, by_energy]
        self._preconditioners: list[BlockPreconditioner] = []

    def block(self, i: int, j: int) -> Tensor:
        """The entries between task i's features (rows) and task j's (columns), (r_i, r_j); a view."""
        return self.matrix[self.starts[i] : self.starts[i + 1], self.starts[j] : self.starts[j + 1]]

    def kept(self, counts: Sequence[int]) -> Tensor:
        """Which features are kept, (R,) bool."""
        marks = torch.zeros(self.starts[-1], dtype=torch.bool)
        for start, count in zip(self.starts, counts, strict=False):
            marks[start : start + count] = True
        return marks

    def product(self, a: Tensor, counts: Sequence[int]) -> Tensor:
        """A a, (R,) float32, for a (R,) float32 that is zero for the features cut off. Reads only the rows kept."""
        total = torch.zeros_like(a)
        for start, count in zip(self.starts, counts, strict=False):
            total.addmv_(self.matrix[start : start + count].T, a[start : start + count])
        return total

    def solve(
        self, b: Tensor, counts: Sequence[int], tolerance: float, operator: Operator | None = None
    ) -> GramSolution | None:
        """Solve B a = b on the features kept.

        Args:
            b: (R,) float32, zero for the features cut off.
            counts: the features kept.
            tolerance: absolute, in ||b - B a|| and, as far as can be estimated, in the square root of
                (a - a*)^T B (a - a*), which for A is ||D(a) - D*||_F.
            operator: B; None for A itself.

        Returns:
            A GramSolution, or None if the features kept are too nearly dependent to reach the tolerance.
        """
        if not bool(b.any()):
            return GramSolution(torch.zeros_like(b), torch.zeros_like(b), 1.0)
        if self.dependent(counts):
            return None
        kept = self.kept(counts)
        best = max(self._in_orders(), key=lambda one: one.prefix(kept))

        def apply(x: Tensor) -> Tensor:
            return self.product(x, counts).mul_(kept)

        operator = operator or Operator(apply, torch.ones_like(b))
        found = solve_preconditioned(operator.apply, b, best, best.prefix(kept), tolerance, operator.diagonal)
        if found is None:
            return None
        readouts = self.product(found.a, counts)
        reached = readouts * kept if operator.apply is apply else operator.apply(found.a)
        missed = float((b - reached).norm())
        return GramSolution(found.a, readouts, found.condition) if missed <= 2.0 * tolerance else None

    def dependent(self, counts: Sequence[int]) -> bool:
        """Whether the features kept are known to be too nearly dependent to be solved for."""
        kept = self.kept(counts)
        return any(one.dependent(kept) for one in self._in_orders())

    def _in_orders(self) -> list[BlockPreconditioner]:
        if not self._preconditioners:
            self._preconditioners = [
                BlockPreconditioner.of(self.matrix, order[self._noted[order]]) for order in self._orders
            ]
        return self._preconditioners


def couplings(factors: Sequence[Factors], block_of: Callable[[int, int], Tensor] | None = None) -> Tensor:
    """How strongly each feature is coupled to other tasks: the squares in its row of A, without its own task's.

    Args:
        factors: one per task, of one shape.
        block_of: gives A's block between two tasks i < j; None to compute one block after the other.

    Returns:
        (R,) float32.
    """
    offsets = starts(factors)
    total = torch.zeros(offsets[-1])
    for j, second in enumerate(factors):
        for i, first in enumerate(factors[:j]):
            found = block_of(i, j) if block_of else block(first, second)
            total[offsets[i] : offsets[i + 1]] += torch.linalg.vector_norm(found, dim=1).square_()
            total[offsets[j] : offsets[j + 1]] += torch.linalg.vector_norm(found, dim=0).square_()
    return total
