"""What the features of tasks have in common, and how gains are spread. None of these measures needs data."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.linalg.factors import Factors

# Gains are nearly equal if they lie within this share of the largest of them ...
CLUSTER_SPREAD = 0.01
# ... and are this many times further from the next gains than from each other. A perturbation E of the matrix, be it
# rounding to the stored dtype or a few more steps of training, turns directions by about ||E|| / gap (Davis and Kahan,
# 1970; Wedin, 1972): the span of such a run is that many times better determined than the directions inside it. Where
# gains are equally close throughout, as in the tail that noise makes, no span is better off than its directions, and
# nothing is marked: of a random matrix, one or two pairs in a hundred gains are.
CLUSTER_ISOLATION = 10.0


def energy_overlap(directions: Sequence[Tensor], gains: Sequence[Tensor]) -> Tensor:
    """Measure how similarly tasks use a space.

    The cosine <P_i, P_j> / (||P_i|| ||P_j||) of their projectors P_t = X_t diag(p_t) X_t^T, weighted by each feature's
    share of energy p = s^2 / sum s^2.

    Args:
        directions: X_t (d, r_t) with orthonormal columns: Vh.T for read overlap, U for write overlap.
        gains: s_t (r_t,).

    Returns:
        (T, T) in [0, 1]: 1 for the same directions with the same shares, 0 for none in common. A task without gains has
        0 throughout.
    """
    count = len(directions)
    shares = [_unit(s) for s in gains]
    weighted = [X * share for X, share in zip(directions, shares, strict=True)]
    norms = [float(torch.linalg.vector_norm(share.square())) for share in shares]
    inner = torch.diag(torch.tensor(norms).square())
    # Two ways to the same numbers: T projectors (d, d) take T r d^2 products, an (r, r) block per pair T^2 r^2 d / 2.
    by_projector = directions[0].shape[0] < (count - 1) / 2 * max(len(s) for s in gains) if count else False
    projectors = [X @ X.T for X in weighted] if by_projector else []
    for i in range(count):
        for j in range(i):
            if by_projector:
                value = float(torch.dot(projectors[i].flatten(), projectors[j].flatten()))
            else:
                value = float(torch.linalg.vector_norm(weighted[i].T @ weighted[j])) ** 2
            inner[i, j] = inner[j, i] = value
    return _cosines(inner)


def energy_overlaps(factors: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """Measure read, write and feature overlap.

    Read and write overlap are those of energy_overlap. Feature overlap is the same in the space of matrices, where a
    task's features u v^T are orthonormal and the cosine of two features is their entry of A = (U^T U) o (V^T V):

        sum_kl p_k A_kl^2 q_l / (||p|| ||q||),    p, q the features' shares of energy

    Returns:
        Three float32 (T, T) in [0, 1]. Feature overlap is 1 for the same features (up to sign) with the same shares,
        and at most the smaller of the other two.
    """
    count = len(factors)
    energies = [_unit(f.S).square() for f in factors]
    inner = torch.zeros(3, count, count)
    for i in range(count):
        inner[:, i, i] = float(torch.dot(energies[i], energies[i]))
        for j in range(i):
            read = (factors[i].Vh @ factors[j].Vh.T).square_()
            write = (factors[i].U.T @ factors[j].U).square_()
            values = [energies[i] @ block @ energies[j] for block in (read, write, read * write)]
            inner[:, i, j] = inner[:, j, i] = torch.stack(values).to(inner)
    read, write, both = (_cosines(table) for table in inner)
    return read, write, both


def _unit(s: Tensor) -> Tensor:
    """s / ||s||, where zeros stay zeros."""
    return s / norm if (norm := torch.linalg.vector_norm(s)) else s


def _cosines(inner: Tensor) -> Tensor:
    """Divide inner products (T, T) by the norms on their diagonal: in [0, 1], and 0 where a norm is 0."""
    norms = inner.diagonal().sqrt()
    scale = torch.outer(norms, norms)
    return torch.where(scale > 0, inner / scale.clamp_min(1e-30), torch.zeros(())).clamp_(0.0, 1.0)


def random_overlap(dim: int) -> float:
    """The expected |cosine| of two independent random unit vectors.

    Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), which is about sqrt(2 / (pi d)).

    Raises:
        InputError: `dim` is below 1.
    """
    if dim < 1:
        raise InputError(f"Random directions need a dimension of at least 1, but {dim} was given.")
    return math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)


def principal_angles(A: Tensor, B: Tensor) -> Tensor:
    """Compute the angles between two subspaces.

    Cosines lose small angles to rounding, so angles below 45 degrees come from sines (Bjorck and Golub, "Numerical
    methods for computing angles between linear subspaces", 1973).

    Args:
        A, B: (d, r_a) and (d, r_b), with orthonormal columns.

    Returns:
        (min(r_a, r_b),) float64, ascending, in radians.
    """
    A, B = A.to(torch.float64), B.to(torch.float64)
    cosines = torch.linalg.svdvals(A.T @ B).clamp(max=1.0)
    if not bool((cosines > math.sqrt(0.5)).any()):
        return torch.acos(cosines)
    sines = torch.linalg.svdvals(B - A @ (A.T @ B)).flip(0)[: cosines.numel()].clamp(max=1.0)
    return torch.where(cosines > math.sqrt(0.5), torch.asin(sines), torch.acos(cosines))


def random_principal_angles(dim: int, k: int) -> Tensor:
    """The principal angles to expect between two independent random subspaces.

    The quantiles at (j - 1/2) / k of the limiting distribution (Wachter, "The limiting empirical measure of multiple
    discriminant ratios", Annals of Statistics, 1980), within about two degrees of the mean of random draws. Where
    subspaces of this size must meet, 2 k - dim angles are zero.

    Args:
        dim: of the space.
        k: of the subspaces.

    Returns:
        (k,) float64, ascending, in radians.

    Raises:
        InputError: unless 0 <= k <= dim.
    """
    if not 0 <= k <= dim:
        raise InputError(f"A subspace of {dim} dimensions has between 0 and {dim} dimensions, but {k} was given.")
    # Above half of the space, the angles are those of the complements.
    n_free = min(k, dim - k)
    angles = torch.zeros(k, dtype=torch.float64)
    if n_free:
        share = n_free / dim
        largest = 4 * share * (1 - share)  # of cos^2
        # cos^2 = largest * sin^2(phi) has this density in phi, without the pole that it has in cos^2 itself.
        phi = torch.linspace(0, math.pi / 2, 2001, dtype=torch.float64)
        density = phi.cos().square() / (1 - largest * phi.sin().square()).clamp_min(1e-300)
        density[-1] = density[-2] if largest == 1.0 else density[-1]
        below = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density)])
        wanted = below[-1] * (1 - (torch.arange(n_free, dtype=torch.float64) + 0.5) / n_free)
        place = torch.searchsorted(below, wanted).clamp(1, len(phi) - 1)
        part = (wanted - below[place - 1]) / (below[place] - below[place - 1])
        at = phi[place - 1] + part * (phi[place] - phi[place - 1])
        angles[k - n_free :] = torch.acos(math.sqrt(largest) * at.sin())
    return angles


def gain_clusters(S: Tensor) -> tuple[tuple[int, int], ...]:
    """Find runs of nearly equal gains (see CLUSTER_SPREAD and CLUSTER_ISOLATION).

    Args:
        S: (r,), descending.

    Returns:
        The largest runs [start, stop) of at least two features, in order, none inside another.
    """
    s = S.to(torch.float64).cpu()
    gaps = s[:-1] - s[1:]
    # A run can start or end only where a gap is much wider than the next one inside.
    drops = CLUSTER_ISOLATION * gaps[1:] <= gaps[:-1]
    rises = CLUSTER_ISOLATION * gaps[:-1] <= gaps[1:]
    starts = [0, *(drops.nonzero().flatten() + 1).tolist()]
    stops = [*(rises.nonzero().flatten() + 2).tolist(), s.numel()]
    gains, gap_before = s.tolist(), [math.inf, *gaps.tolist(), math.inf]
    found: list[tuple[int, int]] = []
    for start in starts:
        if found and start < found[-1][1]:
            continue
        largest = None
        for stop in stops[bisect.bisect_left(stops, start + 2) :]:
            spread = gains[start] - gains[stop - 1]
            if spread > CLUSTER_SPREAD * gains[start]:
                break
            gap = min(gap_before[start], gap_before[stop])
            largest = stop if gap > 0 and spread * CLUSTER_ISOLATION <= gap else largest
        if largest is not None:
            found.append((start, largest))
    return tuple(found)


def effective_rank(S: Tensor) -> float:
    """exp(entropy of p), p = s / sum s, in [1, r]; 0 without gains (Roy, Vetterli, EUSIPCO 2007)."""
    s = S[S > 0].to(torch.float64)
    if s.numel() == 0:
        return 0.0
    p = s / s.max()
    p = p / p.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def stable_rank(S: Tensor) -> float:
    """||D||_F^2 / ||D||_2^2 = sum s^2 / max s^2, in [1, r]; 0 without gains."""
    s = S[S > 0].to(torch.float64)
    return float(((s / s.max()) ** 2).sum()) if s.numel() else 0.0
