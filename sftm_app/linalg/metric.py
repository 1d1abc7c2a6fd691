"""Minimum variance: inner products in which a superposition writes least on what the tasks read and write.

Of all matrices that read out every gain, `readout` takes the one of least Frobenius norm. With a metric it takes

    minimise tr(N D M D^T)   subject to   u_tk^T D v_tk = s_tk for every feature
    D* = N^-1 (sum_tk a_tk u_tk v_tk^T) M^-1,    ((U^T N^-1 U) o (V^T M^-1 V)) a = s
    M = (n / T) sum_t D_t^T D_t / ||D_t||^2 + loading I        (n, n)
    N = (m / T) sum_t D_t D_t^T / ||D_t||^2 + loading I        (m, m), or I

the linearly constrained minimum-variance problem of array processing (Frost 1972) with diagonal loading (Carlson 1988).
Gradient descent writes D_t as a sum of (output gradient)(input)^T, so D_t^T D_t estimates the second moment of task t's
inputs, and D_t D_t^T that of its output gradients: no data is needed. Its use for merging is ours, not the paper's.

With M = L L^T and N = K K^T, the problem is `readout` for the whitened features K^-1 u and L^-1 v:

    D* = K^-T X L^-1,   where X is the superposition of the unit vectors K^-1 u / |K^-1 u| and L^-1 v / |L^-1 v|
                        with the gains s / (|K^-1 u| |L^-1 v|)

Few features span a small space. M and N map it to itself, so everything happens inside it and D* stays low-rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import NumericalError
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.parallel import parallel_map

# Features that span at most this share of a side are handled inside their span. For more, a basis of the span takes
# longer than M itself.
SPAN_SHARE = 0.2
# M is formed below its diagonal only, in so many blocks of columns.
N_COLUMN_BLOCKS = 6


@dataclass(frozen=True)
class Metric:
    """Which inner products to take.

    Attributes:
        inputs: the loading of M, above 0, relative to the mean eigenvalue of the rest of M, which is 1.
        outputs: the loading of N; None for N = I.
    """

    inputs: float
    outputs: float | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """The whitening of one side, x -> L^-1 Q^T x.

    Attributes:
        L: (p, p), lower triangular, the Cholesky factor of Q^T M Q.
        Q: (size, p), an orthonormal basis of the span of the features; None for the whole space.
    """

    L: Tensor
    Q: Tensor | None

    def whiten(self, X: Tensor) -> Tensor:
        """Whiten the rows of X (r, size): (r, p)."""
        return torch.linalg.solve_triangular(self.L.mT, X if self.Q is None else X @ self.Q, upper=True, left=False)

    def restore(self, X: Tensor) -> Tensor:
        """Multiply whitened rows X (r, p) by L^-1 Q^T: (r, size)."""
        inside = torch.linalg.solve_triangular(self.L.to(X), X, upper=False, left=False)
        return inside if self.Q is None else inside @ self.Q.mT.to(X)


@dataclass(frozen=True, eq=False)
class Whitened:
    """Features in a metric.

    Attributes:
        factors: per task. U (p, r) and Vh (r, q) hold unit vectors, which are not orthogonal; S (r,) the gains to read
            out there, s / length.
        lengths: (r,) per task, |K^-1 u| |L^-1 v|.
        write, read: the whitening of outputs and inputs; None for the identity.
    """

    factors: tuple[Factors, ...]
    lengths: tuple[Tensor, ...]
    write: Side | None
    read: Side

    def restore(self, X: Delta) -> Delta:
        """D = K^-T X L^-1, (m, n), of a whitened X (p, q): low-rank where X is."""
        left, right = (X.left, X.right) if isinstance(X, LowRank) else (X, X)
        if self.write is not None:
            left = self.write.restore(left.mT).mT
        if isinstance(X, LowRank):
            return LowRank(left, self.read.restore(right))
        return self.read.restore(left)


def whiten(
    factors: Sequence[Factors], metric: Metric, n_threads: int = 1, merged: Sequence[Factors] | None = None
) -> Whitened:
    """Whiten the features of all tasks.

    Args:
        factors: one per task, of one shape.
        metric: which inner products.
        n_threads: how many tasks to whiten at once.
        merged: the features that M and N are made of, at least one; None for `factors`.
    """
    merged = factors if merged is None else merged
    gains = [f.S for f in merged]
    read = make_side([f.Vh for f in merged], gains, metric.inputs)
    write = None if metric.outputs is None else make_side([f.U.mT for f in merged], gains, metric.outputs)
    on_cpu = factors[0].U.device.type == "cpu"
    found = parallel_map(lambda f: _whiten_task(f, write, read), factors, n_threads if on_cpu else 1)
    return Whitened(tuple(one for one, _ in found), tuple(lengths for _, lengths in found), write, read)


def _whiten_task(f: Factors, write: Side | None, read: Side) -> tuple[Factors, Tensor]:
    V, read_lengths = _unit(read.whiten(f.Vh))
    if write is None:
        return Factors(f.U, f.S / read_lengths, V, f.how), read_lengths
    U, write_lengths = _unit(write.whiten(f.U.mT))
    lengths = read_lengths * write_lengths
    return Factors(U.mT, f.S / lengths, V, f.how), lengths


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    # A direction outside the span of the features merged has no length there.
    lengths = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows.div_(lengths[:, None]), lengths


def make_side(directions: Sequence[Tensor], gains: Sequence[Tensor], loading: float) -> Side:
    """The whitening of one side.

    Args:
        directions: (r_t, size) per task, orthonormal rows.
        gains: (r_t,) per task.
        loading: of the diagonal.
    """
    size, n_features = directions[0].shape[1], sum(map(len, gains))
    n_tasks = sum(len(part) > 0 for part in gains)
    # Divided by the largest first, so that no square overflows or vanishes.
    shares = [part / part[:1] for part in gains]
    weights = [part * (math.sqrt(size / n_tasks) / torch.linalg.vector_norm(part)) for part in shares]
    Q = None
    if n_features <= SPAN_SHARE * size:
        Q = torch.linalg.qr(torch.cat(list(directions)).mT).Q
        directions = [rows @ Q for rows in directions]
    M = directions[0].new_zeros(directions[0].shape[1], directions[0].shape[1])
    for rows, weight in zip(directions, weights, strict=True):
        _add_gram(M, rows * weight[:, None])
    M.diagonal().add_(loading)
    L, info = torch.linalg.cholesky_ex(M)
    if int(info) or not bool(L.diagonal().isfinite().all()):
        raise NumericalError(
            f"The metric of {n_features} features cannot be factorised at loading {loading:g}. Choose a larger one, "
            "or the variant readout."
        )
    return Side(L, Q)


def _add_gram(M: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to M, on and below the diagonal, all that Cholesky reads."""
    step = -(-M.shape[0] // N_COLUMN_BLOCKS)
    for start in range(0, M.shape[0], step):
        M[start:, start : start + step].addmm_(rows[:, start:].mT, rows[:, start : start + step])


def side_dimension(size: int, n_features: int) -> int:
    """p, the dimension of the whitened space of one side."""
    return n_features if n_features <= SPAN_SHARE * size else size


def metric_operations(m: int, n: int, kept: Sequence[int], metric: Metric) -> float:
    """Estimate the floating-point operations that a metric adds to a superposition of `kept` features per task."""
    n_features, work = sum(kept), 0.0
    dimensions = [side_dimension(m, n_features) if metric.outputs is not None else 0, side_dimension(n, n_features)]
    for size, p in zip((m, n), dimensions, strict=True):
        # Forming M, whitening the features, the Cholesky factor; and in a span its basis and what is read in it.
        work += 3.0 * p * p * n_features + p**3 / 3 + (8.0 * size * p * n_features if 0 < p < size else 0.0)
    # The blocks of A inside each task, and restoring D.
    return work + 2.0 * sum(r * r for r in kept) * sum(dimensions) + float(m * n) * sum(dimensions)
