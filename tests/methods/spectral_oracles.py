"""The papers' equations of the spectral methods, in float64 and by SVDs. Task weights as the methods define them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NOISE = 2e-6


def polar(A: Array) -> Array:
    """U V^T of the SVD, without directions that have no gain."""
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    kept = s > NOISE * s.max(initial=0.0)
    return np.asarray(U[:, kept] @ Vh[kept])


def tsv_m(matrices: Sequence[Array], weights: Sequence[float], share: float = 1.0) -> Array:
    """Gargiulo et al. 2024, algorithm 1: cut to k / T, concatenate, whiten both sides, multiply."""
    k = min(matrices[0].shape)
    count = max(1, int(k * share / len(matrices)))
    Us, gains, Vhs = [], [], []
    for D, weight in zip(matrices, weights, strict=True):
        U, s, Vh = np.linalg.svd(weight * D, full_matrices=False)
        kept = min(count, int((s > NOISE * s[0]).sum()))
        Us.append(U[:, :kept])
        gains.append(s[:kept])
        Vhs.append(Vh[:kept])
    return np.asarray(polar(np.hstack(Us)) @ np.diag(np.concatenate(gains)) @ polar(np.vstack(Vhs)))


def iso_c(matrices: Sequence[Array], weights: Sequence[float]) -> Array:
    """Marczak et al. 2025, equations 5 and 6: the sum with every singular value at their mean."""
    total = np.sum([weight * D for D, weight in zip(matrices, weights, strict=True)], axis=0)
    U, s, Vh = np.linalg.svd(total, full_matrices=False)
    kept = s > NOISE * s[0]
    return np.asarray(s[kept].mean() * U[:, kept] @ Vh[kept])


def iso_cts(matrices: Sequence[Array], weights: Sequence[float], common: float = 0.8) -> Array:
    """Marczak et al. 2025, algorithm 2. Where the sum has too low a rank, k is that rank."""
    given = [weight * D for D, weight in zip(matrices, weights, strict=True)]
    U, s, Vh = np.linalg.svd(np.sum(given, axis=0), full_matrices=False)
    rank = int((s > NOISE * s[0]).sum())
    for k in (len(s), rank):
        n_each = min(round((k - int(k * common)) / len(given)), k // len(given))
        n_common = k - n_each * len(given)
        if n_common <= rank:
            break
    Us, gains, Vhs = [U[:, :n_common]], [s[:n_common]], [Vh[:n_common]]
    for D in given:
        rest = D - Us[0] @ Us[0].T @ D
        U, s, Vh = np.linalg.svd(rest, full_matrices=False)
        kept = min(n_each, int((s > 1e-4 * np.linalg.norm(D)).sum()))
        Us.append(U[:, :kept])
        gains.append(s[:kept])
        Vhs.append(Vh[:kept])
    return np.asarray(np.concatenate(gains).mean() * polar(np.hstack(Us)) @ polar(np.vstack(Vhs)))


def cart(
    matrices: Sequence[Array], weights: Sequence[float], rank: int = 0, coefficient: float = 1.0, idle: float = 0.0
) -> Array:
    """Choi et al. 2024, equation 4, relative to the base. rank 0: 8 % of the full rank."""
    k = min(matrices[0].shape)
    count = rank or max(1, round(0.08 * k))
    average = sum(weight * D for D, weight in zip(matrices, weights, strict=True)) / (sum(weights) + idle)
    merged, shares = np.array(average), [weight * len(weights) / sum(weights) for weight in [*weights, idle]]
    for D, weight in zip([*matrices, 0 * average], shares, strict=True):
        U, s, Vh = np.linalg.svd(D - average, full_matrices=False)
        merged += coefficient * weight * (U[:, :count] * s[:count]) @ Vh[:count]
    return merged


def normal(matrices: Sequence[Array], weights: Sequence[float]) -> tuple[Array, Array]:
    """G and B of the normal equation of WUDI, D G = B."""
    G = np.sum([D.T @ D / np.sum(D**2) for D in matrices], axis=0)
    B = np.sum([w * D @ D.T @ D / np.sum(D**2) for D, w in zip(matrices, weights, strict=True)], axis=0)
    return G, B


def filtered(matrices: Sequence[Array], weights: Sequence[float], phi: Callable[[Array], Array]) -> Array:
    """B Q diag(phi / lambda) Q^T, without eigenvalues that are noise."""
    G, B = normal(matrices, weights)
    values, Q = np.linalg.eigh(G)
    values, Q = values[::-1], Q[:, ::-1]
    kept = values > 1e-10 * values[0]
    values, Q = values[kept], Q[:, kept]
    return np.asarray(B @ Q @ np.diag(phi(values / values[0]) / values) @ Q.T)


def ties(matrices: Sequence[Array], weights: Sequence[float], density: float) -> Array:
    """Yadav et al. 2023, algorithm 1, with task weights."""
    trimmed = []
    for D in matrices:
        n_kept = max(1, int(density * D.size))
        smallest = np.sort(np.abs(D), axis=None)[D.size - n_kept]
        trimmed.append(np.where(np.abs(D) >= smallest, D, 0.0))
    sign = np.sign(sum(w * D for D, w in zip(trimmed, weights, strict=True)))
    agree = [D * sign > 0 for D in trimmed]
    total = sum(w * np.where(a, D, 0.0) for D, a, w in zip(trimmed, agree, weights, strict=True))
    voters = sum(w * a for a, w in zip(agree, weights, strict=True))
    return np.asarray(np.divide(total, voters, out=np.zeros_like(trimmed[0]), where=voters > 0))


def knots(matrices: Sequence[Array], weights: Sequence[float], density: float) -> Array:
    """Stoica et al. 2024, section 4."""
    U, s, Vh = np.linalg.svd(np.hstack(matrices), full_matrices=False)
    kept = s > 1e-5 * s[0]
    coordinates = np.split(s[kept, None] * Vh[kept], len(matrices), axis=1)
    return np.asarray(U[:, kept] @ ties(coordinates, weights, density))
