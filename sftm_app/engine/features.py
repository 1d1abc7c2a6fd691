"""The singular features of a layer's tasks: from the cache, or computed now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors, Rank, n_kept
from sftm_app.linalg.gram_svd import GRAM_MIN
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.svd import factorise
from sftm_app.methods.base import Features
from sftm_app.weights.disk_cache import DiskCache, FactorKey

# As a share of the energy: what is missing below is rounding of the gains.
LOST_MIN = 1e-5


def features_of(
    matrices: Sequence[Delta],
    keys: Sequence[FactorKey | None],
    rank: Rank = None,
    cache: DiskCache | None = None,
    n_at_once: int = 1,
    n_threads: int = 1,
) -> list[Features]:
    """Every task's features, at least those that the rank keeps.

    A rank cuts the features of a large dense matrix while they are computed; of other matrices all are as cheap to
    have. A share of energy needs all features.

    Args:
        matrices: the task matrices, each read when it is needed.
        keys: see `planning.keys.factor_key`, one per task.
        rank: what the method asks for.
        cache: where factors are cached.
        n_at_once: how many tasks to factorise at once.
        n_threads: torch's threads.
    """

    def one(task: int) -> Features:
        key = keys[task]
        if cache is None or key is None:
            change = matrices[task]
            cut = None if isinstance(change, LowRank) else _cut(rank, change.shape)
            made, energy = _factorise(change, cut)
        else:
            cut = _cut(rank, key.shape)
            made, energy = cache.factors(
                replace(key, count=n_kept(cut, *key.shape)), lambda: _factorise(matrices[task], cut)
            )
            made = made.cut(cut)
        if cut is None:
            return Features(made)
        lost = energy - float(made.S.double().square().sum())
        return Features(made, lost if lost > LOST_MIN * energy else 0.0)

    return parallel_map(one, range(len(matrices)), min(n_at_once, n_threads))


def _factorise(change: Delta, cut: Rank) -> tuple[Factors, float]:
    return factorise(change, cut), _energy(change) if isinstance(change, Tensor) else 0.0


def _cut(rank: Rank, shape: Sequence[int]) -> Rank:
    """The rank to compute a dense matrix's features up to; None for all of them."""
    m, n = shape
    small = min(m, n) < GRAM_MIN
    return None if small or isinstance(rank, str) or n_kept(rank, m, n) == min(m, n) else rank


def _energy(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix)) ** 2
