"""Singular value calibration (SVC): shrink the directions into which a merge adds up more than a task has there.

    D* = sum_r sigma_r p_r q_r^T                                        the merge, by its singular features
    ratio_tr = <p_r^T D*, p_r^T w_t D_t> / ||p_r^T w_t D_t||^2          how many times task t's own response along p_r
                                                                        the merge gives
    sigma_r  <-  sigma_r / (mean_t max(1, ratio_tr))^strength

Li et al., "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", ICML 2026, arXiv 2602.05536. The
paper multiplies sigma_r by K / sum_t max(alpha, ratio_tr) over K tasks: strength 1 is its alpha = 1, which never
amplifies. Other strengths are ours.

The paper's mean counts all tasks alike (`by_energy=False`). Then a task that hardly changed a layer decides for all:
its ratio grows without limit as its response vanishes. So our mean weights each task by the energy of its response,
||p_r^T w_t D_t||^2. Both agree where tasks respond alike. A task of zeros gives the same as one that lacks the layer.

The delta changes only by what is taken off it, D* - sum_r (1 - 1 / divisor_r) sigma_r p_r q_r^T, so that it stays as it
is where nothing has to shrink. Low-rank matrices are never formed. Each task matrix is read once, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank, norm
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.tolerance import silence
from sftm_app.linalg.workspace import FLOAT_BYTES, DeltaSize, LayerSize, factorise_bytes


def calibrate(
    delta: Delta, matrices: Sequence[Delta], weights: Sequence[float], strength: float, by_energy: bool = True
) -> Delta:
    """Calibrate a merge by the task matrices that it was made from.

    Args:
        delta: D*, (m, n) float32 or float64, dense or low-rank. It is left as it is.
        matrices: the T task matrices D_t, dense or low-rank, each read once.
        weights: w_t > 0, how many times its task matrix each task wants.
        strength: from 0 (nothing changes) to 1 (the paper's).
        by_energy: whether the mean over tasks weights them by the energy of their responses; False for the paper's.

    Returns:
        The calibrated delta, low-rank where `delta` is, in its dtype. It may be `delta` itself.

    Raises:
        NumericalError: the delta could not be factorised.
    """
    if strength == 0:
        return delta
    found = factorise(delta)
    divisors = (excess(found, matrices, weights, by_energy) ** strength).to(found.S)
    if found.rank == 0 or bool((divisors == 1).all()):
        return delta
    if isinstance(delta, LowRank):
        return LowRank(found.U * (found.S / divisors), found.Vh)
    taken = found.Vh.mul_((found.S * (1 - 1 / divisors))[:, None])  # in place: the factors are needed no more
    return torch.addmm(delta, found.U, taken, alpha=-1.0)


def excess(found: Factors, matrices: Sequence[Delta], weights: Sequence[float], by_energy: bool = True) -> Tensor:
    """mean_t max(1, ratio_tr) of every direction p_r, over the tasks that respond to it.

    Args:
        found: the singular features of D*.
        matrices, weights, by_energy: as for `calibrate`.

    Returns:
        (r,) float64, at least 1; 1 where no task responds.
    """
    # In units of the largest singular value, so that no square overflows or vanishes.
    unit = float(found.S[0]) if found.rank else 1.0
    total = found.S.new_zeros(found.rank, dtype=torch.float64)
    heard = torch.zeros_like(total)
    for task, weight in enumerate(weights):
        matrix = matrices[task]
        responses = _responses(found.U, matrix)  # (r, n)
        quiet = silence(responses.dtype) * _norm(matrix)
        del matrix  # before the next task is read
        size = torch.linalg.vector_norm(responses, dim=1, dtype=torch.float64)
        along = torch.einsum("rn,rn->r", responses, found.Vh.to(responses)).double()
        counts = size > quiet
        # Two quotients instead of one: the square of a small response would underflow.
        ratio = (found.S.double() / (weight * size)) * (along / size)
        share = ((weight * size / unit) ** 2 if by_energy else torch.ones_like(size)) * counts
        total += torch.where(counts, share * ratio.clamp_min(1.0), 0.0)
        heard += share
        del responses
    return torch.where(heard > 0, total / torch.where(heard > 0, heard, 1.0), 1.0)


def _norm(matrix: Delta) -> float:
    """The Frobenius norm in float64, which no square of a float32 number leaves."""
    return norm(matrix) if isinstance(matrix, LowRank) else float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _responses(P: Tensor, matrix: Delta) -> Tensor:
    """P^T D, (r, n), in the dtype of D."""
    if isinstance(matrix, LowRank):
        return (P.to(matrix.left).T @ matrix.left) @ matrix.right
    return P.to(matrix).T @ matrix


def calibrate_bytes(size: LayerSize, delta: DeltaSize, rank: int) -> int:
    """Bytes of calibrating a delta at the worst moment, the delta and the task matrix that is read included.

    Args:
        size: of the linear map.
        delta: of the delta.
        rank: how many directions the delta has at most.
    """
    factorising = factorise_bytes(factorised_size(size, delta, rank), (rank,)) + (
        delta.n_bytes if delta.low_rank else 0
    )
    read = max(map(size.thin_bytes, size.features)) if all(size.thin) else size.tensor_bytes
    reading = read + max(size.stored_bytes, FLOAT_BYTES * rank * size.n)
    # The factors are in the dtype of the delta.
    factors = delta.n_bytes if delta.low_rank else size.thin_bytes(rank)
    return max(factorising, delta.n_bytes + factors + max(reading, delta.n_bytes))


def calibrate_operations(size: LayerSize, delta: DeltaSize, rank: int) -> float:
    """Operations of the products, without factorising the delta. Arguments as for `calibrate_bytes`."""
    thin = sum(features for features, is_thin in zip(size.features, size.thin, strict=True) if is_thin)
    n_dense = size.thin.count(False) + (0 if delta.low_rank else 1)
    return 2.0 * rank * ((size.m + size.n) * thin + size.m * size.n * n_dense)


def factorised_size(size: LayerSize, delta: DeltaSize, rank: int) -> LayerSize:
    """The delta as the only matrix that is factorised. Arguments as for `calibrate_bytes`."""
    return replace(
        size, features=(rank,), thin=(delta.low_rank,), tensor_bytes=delta.n_bytes, stored_bytes=0, n_at_once=1
    )
