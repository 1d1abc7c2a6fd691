"""Adapters in the space that they share, where their matrices are small.

    D_t = L_t R_t (m, n),   [L_1 .. L_T] = P (..),  [R_1; .. ; R_T]^T = Q (..) by QR,   D_t = P M_t Q^T

A merge method that commutes with rotations merges the small cores M_t instead: D* = P M* Q^T. Nothing is lost and no
(m, n) matrix is formed. (Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", NeurIPS
2025, arXiv 2509.17786, merge adapters this way.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.operations import thin_operations
from sftm_app.linalg.workspace import LayerSize, factorise_thin_bytes


@dataclass(frozen=True, eq=False)
class CoreSpace:
    """The space of T adapters.

    Attributes:
        left: P, (m, p), orthonormal columns.
        cores: T matrices M_t, (p, q), in the adapters' dtype.
        right: Q^T, (q, n), orthonormal rows.
    """

    left: Tensor
    cores: tuple[Tensor, ...]
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the adapters' products."""
        return int(self.left.shape[0]), int(self.right.shape[1])

    def expand(self, core: Tensor) -> LowRank:
        """P M Q^T of a core (p, q), as a product of thin matrices: of rank p or q, whichever is less."""
        if core.shape[0] <= core.shape[1]:
            return LowRank(self.left, core @ self.right)
        return LowRank(self.left @ core, self.right)


def core_space(deltas: Sequence[Delta]) -> CoreSpace | None:
    """The space that adapters share.

    Args:
        deltas: task matrices of one shape (m, n), at least one.

    Returns:
        The space, or None unless every task matrix is low-rank.
    """
    thin: list[LowRank] = []
    for index in range(len(deltas)):
        delta = deltas[index]
        if not isinstance(delta, LowRank):
            return None
        thin.append(delta)
    # In float64: terms of a thin product may nearly cancel.
    P, from_left = torch.linalg.qr(torch.cat([D.left for D in thin], dim=1).double())
    Q, from_right = torch.linalg.qr(torch.cat([D.right for D in thin]).T.double())
    ranks = [D.rank for D in thin]
    sides = zip(from_left.split(ranks, dim=1), from_right.split(ranks, dim=1), strict=True)
    like = thin[0].left
    return CoreSpace(P.to(like), tuple((left @ right.T).to(like) for left, right in sides), Q.T.to(like).contiguous())


def core_size(size: LayerSize) -> LayerSize:
    """The size of the cores of a layer whose tasks are all adapters; any other layer as it is."""
    if not all(size.thin):
        return size
    rank = sum(size.features)
    p, q = min(size.m, rank), min(size.n, rank)
    n_tasks = len(size.features)
    return LayerSize(p, q, (min(p, q),) * n_tasks, (False,) * n_tasks, 4 * p * q, 0, size.n_at_once)


def merged_size(size: LayerSize) -> LayerSize:
    """The size of the matrices that are merged: cores of adapters, or dense matrices where any task's is dense."""
    core = core_size(size)
    n_tasks = len(core.features)
    return replace(core, features=(core.k,) * n_tasks, thin=(False,) * n_tasks)


def core_bytes(size: LayerSize) -> int:
    """Bytes of finding the cores of a layer whose tasks are all adapters, and of expanding one; 0 for another layer."""
    if not all(size.thin):
        return 0
    rank = sum(size.features)
    return factorise_thin_bytes(size.m, size.n, rank) + 4 * len(size.features) * rank**2


def core_operations(size: LayerSize) -> float:
    """Operations of the same."""
    return thin_operations(size.m, size.n, sum(size.features)) if all(size.thin) else 0.0
