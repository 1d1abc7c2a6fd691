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
    """How a tensor is merged: "copy", "mean", "sum", "stack" or "matrix"."""
    if not np.issubdtype(array.dtype, np.floating):
        return "copy"
    if NORM.search(name):
        return "mean"
    if array.ndim < 2 or name.endswith("bias") or TABLE.search(name):
        return "sum"
    return "stack" if array.ndim == 3 and re.search("expert|moe", name) else "matrix"


def superposed(changes: Sequence[Array]) -> Array:
    """The least-norm D with u^T D v = s for every singular feature of every change: dense least squares on vec(D)."""
    rows, gains = [], []
    for change in changes:
        U, s, Vh = np.linalg.svd(change, full_matrices=False)
        for k in np.flatnonzero(s > 1e-5 * s[0]):
            rows.append(np.outer(U[:, k], Vh[k]).ravel())
            gains.append(s[k])
    D, *_ = np.linalg.lstsq(np.stack(rows), np.array(gains), rcond=1e-7)
    return np.asarray(D.reshape(changes[0].shape))


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
    if what == "sum":
        return np.asarray(base + np.sum(changes, axis=0))
    if what == "stack":
        each = [merge_matrix([change[e] for change in changes], transposed) for e in range(len(base))]
        return np.asarray(base + np.stack(each))
    return np.asarray(base + merge_matrix(changes, transposed))


def distance(found: Array, expected: Array, base: Array) -> float:
    """The error of a merged tensor, relative to how far the merge moved it."""
    moved = float(np.linalg.norm(expected - base))
    return float(np.linalg.norm(found - expected)) / (moved or 1.0)
