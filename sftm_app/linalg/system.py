"""The linear system of a superposition, as an operator on coefficients.

Features of all tasks: U (m, R), V (n, R), coefficients a (R,), D(a) = U diag(a) V^T. Both variants share one operator

    A a = diag(U^T D(a) C V),    C = I (readout),    C = V V^T (mapping),

which equals (U^T U) o (V^T C V) as a matrix (o: elementwise product). Both are symmetric and positive semidefinite
(Schur product theorem). The null space of A is that of a -> D(a): D* does not depend on which solution a solver finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.parallel import parallel_map

# Up to this many features in all, and numbers in their factors, many products of small blocks would take longer than
# one of everything, in another dtype too.
AT_ONCE_MAX = 512
AT_ONCE_ELEMENTS = 1 << 20


def fits_one_gemm(m: int, n: int, n_features: int) -> bool:
    """Whether gram() multiplies everything at once."""
    return n_features <= AT_ONCE_MAX and (m + n) * n_features <= AT_ONCE_ELEMENTS


def superposed(factors: Sequence[Factors], coefficients: Sequence[Tensor], like: Delta | None = None) -> Delta:
    """sum_tk a_tk u_tk v_tk^T, (m, n), in the coefficients' dtype and on their device; low-rank where that is less.

    like: another sum of the same features. A low-rank one shares its read directions, where the dtype is the same.
    """
    m, n = factors[0].shape
    if sum(f.rank for f in factors) < min(m, n):
        left = torch.cat([f.U.to(a) * a for f, a in zip(factors, coefficients, strict=True)], dim=1)
        if isinstance(like, LowRank) and like.right.dtype == left.dtype:
            return LowRank(left, like.right)
        return LowRank(left, torch.cat([f.Vh.to(left) for f in factors]))
    total = coefficients[0].new_zeros(m, n)
    for f, a in zip(factors, coefficients, strict=True):
        total.addmm_(f.U.to(a) * a, f.Vh.to(a))
    return total


def read(D: Delta, factors: Factors) -> Tensor:
    """u_k^T D v_k for every feature of one task, (r,): what the matrix D (m, n) still does of what the task did."""
    like = D.left if isinstance(D, LowRank) else D
    return (D @ factors.Vh.T.to(like)).mul_(factors.U.to(like)).sum(0)


def gram(factors: Sequence[Factors], C: Delta | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A as a matrix, (R, R), symmetric to the last bit, in `dtype` (default: the factors'); C (n, n) symmetric of that
    dtype, or None for the identity. Many features are multiplied block by block, so that not all are converted at once.
    """
    offsets = starts(factors)
    if fits_one_gemm(*factors[0].shape, offsets[-1]):
        U = torch.cat([f.U for f in factors], dim=1).to(dtype or factors[0].U.dtype)
        Vh = torch.cat([f.Vh for f in factors]).to(U)
        A = (U.T @ U).mul_((Vh if C is None else (C @ Vh.T).T) @ Vh.T)
        return A.add_(A.T.clone()).div_(2)
    A = factors[0].U.new_empty(offsets[-1], offsets[-1], dtype=dtype)
    for i, f in enumerate(factors):
        writer, reader = f.U.to(A).T, f.Vh.to(A)
        reader = reader if C is None else (C @ reader.T).T
        for j in range(i, len(factors)):
            block = (writer @ factors[j].U.to(A)).mul_(reader @ factors[j].Vh.to(A).T)
            block = (block + block.T) / 2 if i == j else block
            A[offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]] = block
            A[offsets[j] : offsets[j + 1], offsets[i] : offsets[i + 1]] = block.T
    return A


class Blocks:
    """A of readout, in the factors' dtype, by its T (T - 1) / 2 blocks above the diagonal: those below are their
    transposes, and those on it identities."""

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.ranks = [f.rank for f in factors]
        self.pairs = [(i, j) for j in range(len(factors)) for i in range(j) if self.ranks[i] and self.ranks[j]]

        def form(pair: tuple[int, int]) -> Tensor:
            first, second = factors[pair[0]], factors[pair[1]]
            return (first.U.T @ second.U).mul_(first.Vh @ second.Vh.T)

        on_cpu = factors[0].U.device.type == "cpu"
        self.blocks = parallel_map(form, self.pairs) if on_cpu else [form(pair) for pair in self.pairs]

    def product(self, a: Tensor) -> Tensor:
        """A a of each row of a (n, R)."""
        given, total = torch.split(a, self.ranks, dim=1), a.clone()
        parts = torch.split(total, self.ranks, dim=1)
        for (i, j), block in zip(self.pairs, self.blocks, strict=True):
            parts[i].addmm_(given[j], block.T)
            parts[j].addmm_(given[i], block)
        return total


def starts(factors: Sequence[Factors]) -> list[int]:
    """Where each task's features begin among all of them, and their number R: T + 1 numbers."""
    return list(accumulate((f.rank for f in factors), initial=0))


class System:
    """A of one variant: as a stored (R, R) matrix `gram`, as Blocks, or matrix-free. Works in `dtype` on the factors'
    device. Blocks are for readout in the factors' own dtype.

    The factors stay in their own dtype and are converted one task at a time, for they are most of the memory.
    """

    def __init__(self, factors: Sequence[Factors], variant: str, dtype: torch.dtype, stored: bool) -> None:
        device = factors[0].U.device
        if dtype == torch.float64 and device.type == "mps":  # MPS knows no float64
            device = torch.device("cpu")
        self.factors = [Factors(f.U.to(device), f.S.to(device), f.Vh.to(device), f.how) for f in factors]
        self.ranks = [f.rank for f in factors]
        self.variant = variant
        self._C = _readers(self.factors, dtype) if variant == "mapping" else None
        in_blocks = stored and variant == "readout" and dtype == self.factors[0].U.dtype == torch.float32
        self.blocks = Blocks(self.factors) if in_blocks else None
        self.gram = gram(self.factors, self._C, dtype) if stored and not in_blocks else None

    def apply(self, a: Tensor) -> Tensor:
        """A a of each row of a (n, R)."""
        if self.gram is not None:
            return a @ self.gram
        if self.blocks is not None:
            return self.blocks.product(a)
        return torch.stack([self._read(superposed(self.factors, torch.split(row, self.ranks)), self._C) for row in a])

    def read_out(self, a: Tensor) -> Tensor:
        """diag(U^T D(a) V) of each row of a (n, R), of either variant: A a of readout."""
        if self._C is None:
            return self.apply(a)
        return torch.stack([self._read(superposed(self.factors, torch.split(row, self.ranks))) for row in a])

    def _read(self, D: Delta, C: Delta | None = None) -> Tensor:
        """diag(U^T D C V), (R,)."""
        if C is None:
            return torch.cat([read(D, f) for f in self.factors])
        like = D.left if isinstance(D, LowRank) else D
        return torch.cat([(D @ (C @ f.Vh.T.to(like))).mul_(f.U.to(like)).sum(0) for f in self.factors])

    def right_side(self, gains: Tensor) -> Tensor:
        """b of each row of gains (n, R): these for readout, (G_u o G_v) gains for mapping."""
        return gains if self._C is None else self.read_out(gains)


def _readers(factors: Sequence[Factors], dtype: torch.dtype) -> Delta:
    """V V^T, (n, n), over the read directions of all tasks."""
    Vh = torch.cat([f.Vh.to(dtype) for f in factors])
    return LowRank(Vh.T, Vh) if Vh.shape[0] < Vh.shape[1] else Vh.T @ Vh
