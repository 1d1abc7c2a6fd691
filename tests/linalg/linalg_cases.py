"""Matrices to try things on, and an oracle that shares no formula with the code under test.

The oracle works on vec(D) in float64 with explicit design matrices and torch.linalg.pinv: no Gram matrix, no
elementwise product, no iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from sftm_app.linalg import Delta, Factors, Superposition, factorise, superpose, superposed_delta
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.preservation import errors, measure

SETTINGS = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow], print_blob=False
)
KINDS = ("gaussian", "decaying", "low rank", "rank one", "zero", "copy", "opposed")
# Sharp enough to notice a wrong formula, loose enough for the rounding of the factors.
LOOSE = {torch.float32: 2e-5, torch.float64: 1e-11}


def gaussian(m: int, n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(gaussian(n, n, seed))[0]


def with_gains(gains: Tensor, m: int, n: int, seed: int) -> Tensor:
    """An (m, n) matrix with these gains and random directions."""
    r = gains.numel()
    return (orthogonal(m, seed)[:, :r] * gains) @ orthogonal(n, seed + 1)[:, :r].T


def make(kind: str, m: int, n: int, seed: int, previous: Tensor | None) -> Tensor:
    k = min(m, n)
    if kind == "decaying":
        return with_gains(torch.logspace(0, -2, k, dtype=torch.float64), m, n, seed)
    if kind in ("low rank", "rank one"):
        r = 1 if kind == "rank one" else max(1, k // 2)
        return gaussian(m, r, seed) @ gaussian(r, n, seed + 1)
    if kind == "zero":
        return torch.zeros(m, n, dtype=torch.float64)
    if kind in ("copy", "opposed") and previous is not None:
        return previous if kind == "copy" else -previous
    return gaussian(m, n, seed)


@st.composite
def task_matrices(draw: st.DrawFn, max_tasks: int = 3, max_size: int = 7) -> list[Tensor]:
    """1 to max_tasks float64 matrices of one shape: tall, wide, square, single rows and columns; all the KINDS."""
    m, n = draw(st.integers(1, max_size)), draw(st.integers(1, max_size))
    matrices: list[Tensor] = []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=max_tasks)):
        seed = draw(st.integers(0, 10_000))
        matrices.append(make(kind, m, n, seed, matrices[-1] if matrices else None))
    return matrices


def merged(
    matrices: Sequence[Tensor], variant: str = "readout", solver: str = "auto", rank: int | float | None = None
) -> Tensor:
    factors = [factorise(D, rank) for D in matrices]
    return superposed_matrix(factors, superpose(factors, variant, solver))


def superposed_matrix(factors: Sequence[Factors], superposition: Superposition) -> Tensor:
    """D* as a dense matrix in the factors' dtype."""
    return dense(superposed_delta(factors, superposition)).to(factors[0].U)


def features(factors: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, R), V (n, R), gains (R,) in float64."""
    U = torch.cat([f.U.double() for f in factors], 1)
    V = torch.cat([f.Vh.double() for f in factors], 0).T
    return U, V, torch.cat([f.S.double() for f in factors])


def oracle(factors: Sequence[Factors], variant: str) -> tuple[Tensor, float]:
    """D* of the dense problem, and how far its design matrix is from a change of rank (smallest gain / largest)."""
    U, V, gains = features(factors)
    (m, n), R = factors[0].shape, gains.numel()
    outer = torch.stack([torch.outer(U[:, k], V[:, k]).flatten() for k in range(R)])  # (R, m n): vec(u v^T)
    if variant == "readout":  # least-norm D with outer @ vec(D) = gains, in the least-squares sense
        design, target = outer, gains
        D = (torch.linalg.pinv(design, rtol=1e-6) @ target).reshape(m, n)
    else:  # least squares over a of sum_k ||D(a) v_k - s_k u_k||^2
        design = torch.stack([(outer[k].reshape(m, n) @ V).flatten() for k in range(R)], 1)  # (m R, R)
        a = torch.linalg.pinv(design, rtol=1e-6) @ (U * gains).flatten()
        D = (outer.T @ a).reshape(m, n)
    values = torch.linalg.svdvals(design)
    real = values[values > 1e-6 * values[0]]
    return D, float(real[-1] / real[0])


def readout_error(D: Delta, factors: Factors) -> float:
    return errors(measure(D, [factors])).readout[0]


def mapping_error(D: Delta, factors: Factors) -> float:
    return errors(measure(D, [factors])).mapping[0]


def total_norm(matrices: Sequence[Tensor]) -> float:
    """sqrt(sum_t ||D_t||^2)."""
    return math.sqrt(sum(float(D.double().norm()) ** 2 for D in matrices))


def distance(A: Tensor, B: Tensor, scale: float | None = None) -> float:
    """||A - B|| / scale, where scale is ||B|| unless given; 0 / 0 is 0."""
    difference = float((A.double() - B.double()).norm())
    scale = float(B.double().norm()) if scale is None else scale
    return 0.0 if difference == 0.0 else difference / scale if scale else math.inf
