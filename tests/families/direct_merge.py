"""A slow, direct merge in float64, tensor by tensor, with roles from names alone. It shares no code with the app."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

Array = np.ndarray
NORM = re.compile(r"norm|layrnorm|\bln_|\.bn|normalization", re.IGNORECASE)
TABLE = re.compile(
    r"embed_tokens|word_embeddings|shared\.|wte|wpe|embed_in|position|token_type|cls_token|mask_token|class_embedding|"
    r"distillation_token|token_embedding|logit_|lambda1|relative|sinks|\.probe$"
)


def arrays(folder: Path) -> dict[str, Array]:
    """Every tensor of a single-file checkpoint, in float64; integers as stored."""
    return {
        name: tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
    }


def rule(name: str, array: Array) -> str:
    """How a tensor is merged: "copy", "mean", "stack" or "matrix"."""
    if not np.issubdtype(array.dtype, np.floating):
        return "copy"
    if NORM.search(name) or array.ndim < 2 or name.endswith("bias") or TABLE.search(name):
        return "mean"
    return "stack" if array.ndim == 3 and re.search("expert|moe", name) else "matrix"


def superposed(changes: Sequence[Array]) -> Array:
    """The default merge of matrices: features up to 90 % of the energy where not all fit into the matrix, minimum
    variance on both sides with loading 3, then calibrated.

    With Y = N^1/2 D M^1/2 it is the least-norm Y that reads out every gain: dense least squares on vec(Y).
    """
    fit = sum(count_features(change) for change in changes) <= min(changes[0].shape)
    kept = changes if fit else [leading(change) for change in changes]
    M, N = moment([change.T for change in kept]), moment(kept)
    read, write = inverse_root(M), inverse_root(N)
    rows, gains = [], []
    for change in kept:
        U, s, Vh = np.linalg.svd(change, full_matrices=False)
        for k in np.flatnonzero(s > 1e-5 * s[0]):
            row = np.outer(write @ U[:, k], read @ Vh[k]).ravel()
            length = np.linalg.norm(row)
            rows.append(row / length)
            gains.append(s[k] / length)
    Y, *_ = np.linalg.lstsq(np.stack(rows), np.array(gains), rcond=1e-7)
    return calibrated(write @ Y.reshape(changes[0].shape) @ read, changes)


def count_features(change: Array) -> int:
    """The singular features that float32 inputs can tell from zero."""
    s = np.linalg.svd(change, compute_uv=False)
    return int((s > 1e-5 * s[0]).sum())


def leading(change: Array) -> Array:
    """The fewest singular features that hold 90 % of the energy."""
    U, s, Vh = np.linalg.svd(change, full_matrices=False)
    held = np.cumsum(s**2) / np.sum(s**2)
    count = int(np.searchsorted(held, 0.9)) + 1
    return np.asarray((U[:, :count] * s[:count]) @ Vh[:count])


def moment(changes: Sequence[Array]) -> Array:
    """N of the changes; M of their transposes."""
    size = len(changes[0])
    total = sum(change @ change.T / np.linalg.norm(change) ** 2 for change in changes)
    return np.asarray(total * size / len(changes) + 3.0 * np.eye(size))


def inverse_root(M: Array) -> Array:
    """M^-1/2."""
    values, Q = np.linalg.eigh(M)
    return np.asarray((Q / np.sqrt(values)) @ Q.T)


def calibrated(D: Array, changes: Sequence[Array]) -> Array:
    """Singular value calibration, direction by direction."""
    P, sigma, Qh = np.linalg.svd(D, full_matrices=False)
    for r in range(len(sigma)):
        own = [P[:, r] @ change for change in changes]
        heard = [o for o, change in zip(own, changes, strict=True) if np.linalg.norm(o) > 1e-5 * np.linalg.norm(change)]
        energy = sum(o @ o for o in heard)
        sigma[r] /= sum(max(o @ o, sigma[r] * Qh[r] @ o) for o in heard) / energy if heard else 1.0
    return np.asarray((P * sigma) @ Qh)


def merge_matrix(changes: Sequence[Array], transposed: bool = False, blocks: int = 1) -> Array:
    """D for matrices as stored, with convolutions flattened. blocks: how many equal maps are stacked along the rows."""
    shape = changes[0].shape
    maps = [change.T if transposed else change.reshape(shape[0], -1) for change in changes]
    parts = zip(*(np.split(matrix, blocks) for matrix in maps), strict=True)
    D = np.concatenate([superposed(part) for part in parts])
    return np.asarray(D.T if transposed else D.reshape(shape))


def direct_merge(name: str, base: Array, tasks: Sequence[Array], transposed: bool = False) -> Array:
    """The merged tensor `name`. tasks: those that hold it."""
    what = rule(name, base)
    if what == "copy" or not tasks:
        return base
    changes = [task - base for task in tasks]
    if what == "mean":
        return np.asarray(base + np.mean(changes, axis=0))
    if what == "stack":
        each = [merge_matrix([change[e] for change in changes], transposed) for e in range(len(base))]
        return np.asarray(base + np.stack(each))
    return np.asarray(base + merge_matrix(changes, transposed))


def distance(found: Array, expected: Array, base: Array) -> float:
    """The error of a merged tensor, relative to how far the merge moved it."""
    moved = float(np.linalg.norm(expected - base))
    return float(np.linalg.norm(found - expected)) / (moved or 1.0)
