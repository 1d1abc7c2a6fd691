"""The linear system of a superposition, as an operator on coefficients.

Features of all tasks: U (m, R), V (n, R), coefficients a (R,), D(a) = U diag(a) V^T. Both variants share one operator

    A a = diag(U^T D(a) C V),    C = I (readout),    C = V V^T (mapping),

which as a matrix is (U^T U) o (V^T C V) (o: elementwise product). Both are symmetric and positive semidefinite (Schur
product theorem). A and a -> D(a) have the same null space, so D* does not depend on which solution a solver finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.parallel import parallel_map

# Up to this many features, and numbers in their factors, many products of small blocks would take longer than a single
# product of everything, even in another dtype.
ONE_GEMM_FEATURES = 512
ONE_GEMM_ELEMENTS = 1 << 20


def fits_one_gemm(m: int, n: int, n_features: int) -> bool:
    """Whether gram() multiplies all features of tasks with (m, n) matrices in one product."""
    return n_features <= ONE_GEMM_FEATURES and (m + n) * n_features <= ONE_GEMM_ELEMENTS


def starts(factors: Sequence[Factors]) -> list[int]:
    """Where each task's features begin among all of them, then their number R: T + 1 numbers."""
    return list(accumulate((f.rank for f in factors), initial=0))


def superposed(
    factors: Sequence[Factors], coefficients: Sequence[Tensor], shape: tuple[int, int] | None = None
) -> Delta:
    """Form D = sum_tk a_tk u_tk v_tk^T.

    Args:
        factors: one per task, of one shape.
        coefficients: (r_t,) per task.
        shape: of the matrix that D stands for, if D is given in a smaller space.

    Returns:
        (m, n) in the coefficients' dtype and on their device: low-rank where there are fewer features than the shorter
        side of `shape`, otherwise dense.
    """
    m, n = factors[0].shape
    if sum(f.rank for f in factors) < min(shape or (m, n)):
        left = torch.cat([f.U.to(a) * a for f, a in zip(factors, coefficients, strict=True)], dim=1)
        return LowRank(left, torch.cat([f.Vh.to(left) for f in factors]))
    total = coefficients[0].new_zeros(m, n)
    for f, a in zip(factors, coefficients, strict=True):
        total.addmm_(f.U.to(a) * a, f.Vh.to(a))
    return total


def read(D: Delta, factors: Factors) -> Tensor:
    """Read u_k^T D v_k of a matrix D (m, n) for every feature of one task: (r,) in the dtype of D."""
    like = D.left if isinstance(D, LowRank) else D
    return (D @ factors.Vh.T.to(like)).mul_(factors.U.to(like)).sum(0)


def block(first: Factors, second: Factors) -> Tensor:
    """The entries of A = (U^T U) o (V^T V) between two tasks' features: (r_first, r_second), each in [-1, 1]."""
    return (first.U.T @ second.U).mul_(first.Vh @ second.Vh.T)


def gram(factors: Sequence[Factors], C: Delta | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Form A as a matrix.

    Many features are multiplied block by block, so that not all are converted at once.

    Args:
        factors: one per task, of one shape.
        C: (n, n), symmetric, in `dtype`; None for the identity.
        dtype: of the result; None for that of the factors.

    Returns:
        (R, R), symmetric to the last bit.
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
            part = (writer @ factors[j].U.to(A)).mul_(reader @ factors[j].Vh.to(A).T)
            part = (part + part.T) / 2 if i == j else part
            A[offsets[i] : offsets[i + 1], offsets[j] : offsets[j + 1]] = part
            A[offsets[j] : offsets[j + 1], offsets[i] : offsets[i + 1]] = part.T
    return A


class Blocks:
    """A of `readout`, in the factors' dtype, stored as its blocks on and above the diagonal.

    The blocks below the diagonal are their transposes. Those on it are identities, and not stored, if each task's
    directions are orthonormal.
    """

    def __init__(self, factors: Sequence[Factors], orthonormal: bool, n_threads: int) -> None:
        self.ranks = [f.rank for f in factors]
        tasks = [task for task, rank in enumerate(self.ranks) if rank]
        self.orthonormal = orthonormal
        self.pairs = [(i, j) for j in tasks for i in tasks if i < j or (i == j and not orthonormal)]
        self.blocks = parallel_map(
            lambda pair: block(factors[pair[0]], factors[pair[1]]),
            self.pairs,
            n_threads if factors[0].U.device.type == "cpu" else 1,
        )

    def product(self, a: Tensor) -> Tensor:
        """A a of (R,)."""
        given, total = torch.split(a, self.ranks), a.clone() if self.orthonormal else torch.zeros_like(a)
        parts = torch.split(total, self.ranks)
        for (i, j), matrix in zip(self.pairs, self.blocks, strict=True):
            parts[i].addmv_(matrix, given[j])
            if i != j:
                parts[j].addmv_(matrix.T, given[i])
        return total


class System:
    """A of one variant as an operator: a stored (R, R) matrix `gram`, or Blocks, or matrix-free.

    The factors stay in their own dtype and are converted one task at a time, for they take most of the memory.

    Args:
        factors: one per task, of one shape.
        variant: "readout" or "mapping".
        dtype: to compute in, on the factors' device (on the CPU where that device has no float64).
        stored: whether to store A: as Blocks for `readout` where factors and `dtype` are float32, otherwise as a
            matrix.
        orthonormal: whether the directions of each task are orthonormal, as singular features are.
        n_threads: how many threads form it.
    """

    def __init__(
        self,
        factors: Sequence[Factors],
        variant: str,
        dtype: torch.dtype,
        stored: bool,
        orthonormal: bool = True,
        n_threads: int = 1,
    ) -> None:
        device = factors[0].U.device
        if dtype == torch.float64 and device.type == "mps":  # MPS has no float64
            device = torch.device("cpu")
        self.factors = [Factors(f.U.to(device), f.S.to(device), f.Vh.to(device), f.how) for f in factors]
        self.ranks = [f.rank for f in factors]
        self.variant = variant
        self._C = _readers(self.factors, dtype) if variant == "mapping" else None
        in_blocks = stored and variant == "readout" and dtype == self.factors[0].U.dtype == torch.float32
        self.blocks = Blocks(self.factors, orthonormal, n_threads) if in_blocks else None
        self.gram = gram(self.factors, self._C, dtype) if stored and not in_blocks else None

    def apply(self, a: Tensor) -> Tensor:
        """A a of (R,)."""
        if self.gram is not None:
            return a @ self.gram
        if self.blocks is not None:
            return self.blocks.product(a)
        return self._read(a, self._C)

    def read_out(self, a: Tensor) -> Tensor:
        """diag(U^T D(a) V) of (R,), whatever the variant: A a of `readout`."""
        return self.apply(a) if self._C is None else self._read(a)

    def right_side(self, gains: Tensor) -> Tensor:
        """b (R,) for gains (R,): the gains themselves for `readout`, (G_u o G_v) gains for `mapping`."""
        return gains if self._C is None else self.read_out(gains)

    def _read(self, a: Tensor, C: Delta | None = None) -> Tensor:
        """diag(U^T D(a) C V), (R,)."""
        D = superposed(self.factors, torch.split(a, self.ranks))
        if C is None:
            return torch.cat([read(D, f) for f in self.factors])
        like = D.left if isinstance(D, LowRank) else D
        return torch.cat([(D @ (C @ f.Vh.T.to(like))).mul_(f.U.to(like)).sum(0) for f in self.factors])


def _readers(factors: Sequence[Factors], dtype: torch.dtype) -> Delta:
    """V V^T, (n, n), over the read directions of all tasks."""
    Vh = torch.cat([f.Vh.to(dtype) for f in factors])
    return LowRank(Vh.T, Vh) if Vh.shape[0] < Vh.shape[1] else Vh.T @ Vh
