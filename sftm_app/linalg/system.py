"""The linear system of a superposition, as an operator on coefficients.

Features of all tasks: U (m, R), V (n, R), coefficients a (R,), D(a) = U diag(a) V^T. Both variants share one operator

    A a = diag(U^T D(a) C V),    C = I (readout),    C = V V^T (mapping),

which equals (U^T U) o (V^T C V) as a matrix (o: elementwise product). Both are symmetric and positive semidefinite
(Schur product theorem). The null space of A is that of a -> D(a): D* does not depend on which solution a solver finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sftm_app.linalg.svd import Factors


def superposed(factors: Sequence[Factors], coefficients: Sequence[Tensor]) -> Tensor:
    """sum_tk a_tk u_tk v_tk^T, (m, n), in the coefficients' dtype and on their device."""
    m, n = factors[0].shape
    total = coefficients[0].new_zeros(m, n)
    for f, a in zip(factors, coefficients, strict=True):
        total.addmm_(f.U.to(a) * a, f.Vh.to(a))
    return total


def read(D: Tensor, factors: Factors) -> Tensor:
    """u_k^T D v_k for every feature of one task, (r,): what the matrix D (m, n) still does of what the task did."""
    return ((factors.U.T @ D) * factors.Vh).sum(1)


def gram(factors: Sequence[Factors], C: Tensor | None = None) -> Tensor:
    """A as a matrix, (R, R), block by block; C (n, n) symmetric, or None for the identity."""
    offsets = [0]
    for f in factors:
        offsets.append(offsets[-1] + f.rank)
    A = factors[0].U.new_empty(offsets[-1], offsets[-1])
    for i, f in enumerate(factors):
        reader = f.Vh if C is None else f.Vh @ C
        for j in range(i, len(factors)):
            block = (f.U.T @ factors[j].U).mul_(reader @ factors[j].Vh.T)
            block = (block + block.T) / 2 if i == j else block  # symmetric to the last bit
            A[offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]] = block
            A[offsets[j] : offsets[j + 1], offsets[i] : offsets[i + 1]] = block.T
    return A


class System:
    """A of one variant: as a stored (R, R) matrix or matrix-free. Works in `dtype` on the factors' device."""

    def __init__(self, factors: Sequence[Factors], variant: str, dtype: torch.dtype, stored: bool) -> None:
        device = factors[0].U.device
        if dtype == torch.float64 and device.type == "mps":  # MPS knows no float64
            device = torch.device("cpu")
        to = partial(Tensor.to, device=device, dtype=dtype)
        self.factors = [Factors(to(f.U), to(f.S), to(f.Vh), f.how) for f in factors]
        self.ranks = [f.rank for f in factors]
        self._C: Tensor | None = None
        if variant == "mapping":
            self._C = sum((f.Vh.T @ f.Vh for f in self.factors[1:]), start=self.factors[0].Vh.T @ self.factors[0].Vh)
        self.gram = gram(self.factors, self._C) if stored else None

    def matrix(self, a: Tensor) -> Tensor:
        """D(a), (m, n)."""
        return superposed(self.factors, torch.split(a, self.ranks))

    def read(self, D: Tensor) -> Tensor:
        """diag(U^T D V), (R,)."""
        return torch.cat([read(D, f) for f in self.factors])

    def apply(self, a: Tensor) -> Tensor:
        """A a, (R,)."""
        if self.gram is not None:
            return self.gram @ a
        D = self.matrix(a)
        return self.read(D if self._C is None else D @ self._C)

    def right_side(self, gains: Tensor) -> Tensor:
        """b (R,): the gains for readout, (G_u o G_v) gains for mapping."""
        return gains if self._C is None else self.read(self.matrix(gains))
