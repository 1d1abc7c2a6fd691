"""Factorise one task matrix into singular features: D = sum_k s_k u_k v_k^T.

The methods below are tried in this order. Each result is checked (finite, backward error), and if it fails, the next
method takes over. `Factors.how` names the one that succeeded.

    gram     CPU and CUDA, float32 matrices with a short side of at least GRAM_MIN: eigenvectors of the Gram matrix in
             float64, or ("gram float32") in float32 if only a few strong features are kept; see gram_svd
    gesvdj   CUDA, torch's default driver there (one-sided Jacobi; torch itself retries with gesvd)
    gesvd    CUDA, QR iteration
    gesdd    CPU, divide and conquer, in the matrix's own dtype (torch has no other SVD on the CPU)
    float64  CPU, gesdd in float64
    eigh     CPU, float64, eigenvectors of [[0, D], [D^T, 0]]: slow, but a different algorithm

A low-rank matrix is never formed: the QR of its thin factors leaves an (r, r) core to factorise, O((m + n) r^2).

`gesvda` is never used: it is approximate by design. Devices without an SVD of their own (MPS) start with the CPU
methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sftm_app.errors import InputError, NumericalError
from sftm_app.linalg.factors import Factors, Rank, n_kept, n_leading, power_of_two
from sftm_app.linalg.failures import has_not_converged
from sftm_app.linalg.gram_svd import GRAM_MIN, svd_by_gram
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.tolerance import BACKWARD_ERROR_FACTOR, ORTHOGONALITY, rcond

# Random combinations of features that check a factorisation.
N_PROBES = 4

_SVD = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def factorise(delta: Delta, rank: Rank = None) -> Factors:
    """Factorise one task matrix into singular features.

    Gains at or below rcond(dtype, m, n) times the largest are rounding noise and are dropped, so that a zero or empty
    matrix has r = 0.

    Args:
        delta: (m, n) float32 or float64, dense or low-rank.
        rank: how many features to keep; see `n_kept`. A share of energy refers to the gains above the noise.

    Returns:
        Factors with U (m, r), S (r,), Vh (r, n) in the dtype and on the device of `delta`.

    Raises:
        InputError: another shape or dtype.
        RecipeError: a bad rank.
        NumericalError: the matrix holds NaN or Inf, a gain exceeds the range of the dtype, or every method failed.
    """
    return _factorise_low_rank(delta, rank) if isinstance(delta, LowRank) else _factorise_dense(delta, rank)


def _factorise_dense(matrix: Tensor, rank: Rank) -> Factors:
    if matrix.ndim != 2 or matrix.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"A task matrix must have 2 dimensions and be float32 or float64, but this one is "
            f"{' x '.join(map(str, matrix.shape))} {_name(matrix.dtype)}. Reshape or convert it first."
        )
    m, n = matrix.shape
    n_kept(rank, m, n)  # refuses a bad rank before the work
    largest = _largest(matrix)
    if not math.isfinite(largest):
        n_bad = int(torch.count_nonzero(~torch.isfinite(matrix)))
        raise NumericalError(
            f"A task matrix of shape {m} x {n} holds {n_bad} values that are NaN or infinite. "
            "Check the checkpoint that it came from."
        )
    if largest == 0.0:
        return Factors(matrix.new_zeros(m, 0), matrix.new_zeros(0), matrix.new_zeros(0, n), "zero")

    scale = power_of_two(largest)
    noise = rcond(matrix.dtype, m, n)

    def keep(gains: Tensor) -> int:
        return n_leading(rank, gains[gains / gains[0] > noise], m, n)

    scaled = matrix / scale
    found = _by_gram(scaled, keep, not isinstance(rank, str) and n_kept(rank, m, n) < min(m, n))
    U, S, Vh, how = found or _climb(scaled)
    del scaled
    r = keep(S) if found is None else len(S)
    return _finished(U[:, :r], S[:r] * scale, Vh[:r], how, matrix)


def _factorise_low_rank(delta: LowRank, rank: Rank) -> Factors:
    """From the QR of both thin factors and the SVD of the small core, in float64, which costs little here."""
    m, n = delta.shape
    n_kept(rank, m, n)  # refuses a bad rank before the work
    left, right = delta.left.double(), delta.right.double()
    if not (bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())):
        raise NumericalError(
            f"A factor of a low-rank task matrix of shape {m} x {n} holds values that are NaN or infinite. "
            "Check the adapter that it came from."
        )
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right.T)
    core = factorise(R_left @ R_right.T)
    # The core has the gains of the whole matrix, so what is noise next to the largest of them goes here.
    noise = rcond(delta.left.dtype, m, n) * core.S[:1]
    r = n_leading(rank, core.S[torch.gt(core.S, noise)], m, n)
    how = "zero" if core.how == "zero" else f"qr, {core.how}"
    return _finished((Q_left @ core.U)[:, :r], core.S[:r], (core.Vh @ Q_right.T)[:r], how, delta.left)


def _finished(U: Tensor, S: Tensor, Vh: Tensor, how: str, like: Tensor) -> Factors:
    """Factors in the dtype and on the device of `like`, with their signs fixed."""
    S = S.to(like)
    if not bool(torch.isfinite(S).all()):
        raise NumericalError(
            f"The largest gain of a task matrix of shape {len(U)} x {Vh.shape[1]} does not fit {_name(like.dtype)}. "
            "Compute in float64, or check the checkpoint or adapter that it came from."
        )
    U, Vh = _fix_signs(U, Vh)
    return Factors(U.to(like).contiguous(), S, Vh.to(like).contiguous(), how)


def _largest(matrix: Tensor) -> float:
    """The largest magnitude, NaN or infinite if an entry is; needs no copy of the matrix."""
    return max(abs(float(end)) for end in torch.aminmax(matrix)) if matrix.numel() else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _by_gram(matrix: Tensor, keep: Callable[[Tensor], int], few: bool) -> tuple[Tensor, Tensor, Tensor, str] | None:
    """The features kept, from the Gram matrix; None if that does not suit the matrix or the result fails its check."""
    if matrix.device.type not in ("cpu", "cuda") or matrix.dtype != torch.float32 or min(matrix.shape) < GRAM_MIN:
        return None
    try:
        U, S, Vh, how = svd_by_gram(matrix, keep, few)
    except RuntimeError as error:
        if not has_not_converged(error, matrix.device):
            raise
        return None
    return (U, S, Vh, how) if _is_sound(matrix, U, S, Vh) else None


def _is_sound(matrix: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    """Whether these leading features belong to the matrix and are orthonormal, judged by N_PROBES combinations of them.

    Does what _trouble does, and checks D^T U = V S, by a few products with (N_PROBES, r): the mean of a squared error
    over probes estimates its squared Frobenius norm. NaN fails every check.
    """
    # Probes are rows: a product with few rows on the left is several times as fast as one with few columns.
    probes = torch.randn(N_PROBES, len(S), generator=torch.Generator().manual_seed(0)).to(S)
    written, read, weighted = probes @ U.T, probes @ Vh, probes * S
    missed = [written @ matrix - weighted @ Vh, read @ matrix.T - weighted @ U.T]
    apart = [written @ U - probes, read @ Vh.T - probes]
    limit = BACKWARD_ERROR_FACTOR * max(matrix.shape) * float(torch.finfo(S.dtype).eps)
    limit *= float(torch.linalg.vector_norm(matrix))
    return all(_root_mean(error) <= limit for error in missed) and all(
        _root_mean(error) <= ORTHOGONALITY * math.sqrt(len(S)) for error in apart
    )


def _root_mean(errors: Tensor) -> float:
    """Estimate the Frobenius norm of a matrix of errors from its products with standard normal probes (N_PROBES, k)."""
    return float(torch.linalg.vector_norm(errors)) / math.sqrt(N_PROBES)


def _climb(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, str]:
    """The result of the first SVD method that succeeds and passes its check."""
    troubles = []
    for how, decompose in _svd_methods(matrix):
        try:
            U, S, Vh = decompose(matrix)
        except RuntimeError as error:
            if not has_not_converged(error, matrix.device):
                raise
            troubles.append(f"{how}: {str(error).partition(chr(10))[0]}")
            continue
        if (trouble := _trouble(matrix, U, S, Vh)) is None:
            return U, S, Vh, how
        troubles.append(f"{how}: {trouble}")
    m, n = matrix.shape
    raise NumericalError(
        f"No method could factorise a task matrix of shape {m} x {n} ({'; '.join(troubles)}). "
        "Leave this tensor to another merge method."
    )


def _svd_methods(matrix: Tensor) -> list[tuple[str, _SVD]]:
    methods: list[tuple[str, _SVD]] = []
    if matrix.device.type == "cuda":
        methods.append(("gesvdj", lambda D: tuple(torch.linalg.svd(D, full_matrices=False))))
        methods.append(("gesvd", lambda D: tuple(torch.linalg.svd(D, full_matrices=False, driver="gesvd"))))
    methods.append(("gesdd", lambda D: tuple(torch.linalg.svd(D.cpu(), full_matrices=False))))
    if matrix.dtype != torch.float64:
        methods.append(("float64", lambda D: tuple(torch.linalg.svd(D.cpu().double(), full_matrices=False))))
    methods.append(("eigh", _svd_by_eigh))
    return methods


def _svd_by_eigh(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD from the eigenvectors (u, v) / sqrt(2) of [[0, D], [D^T, 0]], whose eigenvalues are +-s."""
    D = matrix.cpu().double()
    m, n = D.shape
    k = min(m, n)
    J = D.new_zeros(m + n, m + n)
    J[:m, m:], J[m:, :m] = D, D.T
    values, vectors = torch.linalg.eigh(J)
    top = vectors[:, -k:].flip(1)
    U = torch.nn.functional.normalize(top[:m], dim=0)
    V = torch.nn.functional.normalize(top[m:], dim=0)
    return U, values[-k:].flip(0).clamp(min=0.0), V.T


def _trouble(matrix: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> str | None:
    """What is wrong with the factors of `matrix`, or None. Checked in their dtype and on their device."""
    if not bool(torch.isfinite(U).all() & torch.isfinite(S).all() & torch.isfinite(Vh).all()):
        return "the result is not finite"
    D = matrix.to(S)
    # Scale the smaller factor by the gains: for a long matrix, scaling the other would hold another matrix in memory.
    U, Vh = (U, S[:, None] * Vh) if len(U) > Vh.shape[1] else (U * S, Vh)
    missed = torch.addmm(D, U, Vh, alpha=-1.0)
    error = float(torch.linalg.vector_norm(missed) / torch.linalg.vector_norm(D))
    limit = BACKWARD_ERROR_FACTOR * max(D.shape) * float(torch.finfo(S.dtype).eps)
    return None if error <= limit else f"its factors miss the matrix by {error:.1e}, more than {limit:.1e}"


def _fix_signs(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """Flip (u, v) pairs in place so that the entry of largest magnitude of each u is positive."""
    # Several times as fast as argmax.
    signs = torch.where(U.amax(0) < -U.amin(0), -1.0, 1.0).to(U) if U.numel() else U.new_ones(U.shape[1])
    return U.mul_(signs), Vh.mul_(signs[:, None])
