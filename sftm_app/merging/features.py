"""The singular features of a layer's tasks: those that an earlier merge kept, or computed now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from sftm_app.linalg.gram_svd import GRAM_MIN
from sftm_app.linalg.low_rank import Change, LowRank
from sftm_app.linalg.parallel import each
from sftm_app.linalg.svd import Factors, Rank, factorise, n_kept
from sftm_app.merging.changes import Changes
from sftm_app.merging.factor_cache import FactorKey, digest_of
from sftm_app.merging.methods.base import Features, Kept

# One reads and converts a task's tensor while the GPU computes for the other.
GPU_THREADS = 2
# Of the energy; below, rounding of the gains is all that could be missing.
LOST_MIN = 1e-5

Result = TypeVar("Result")


class FactorSource(Protocol):
    """Where factors, and what follows from them, are kept between merges, such as factor_cache.FactorStore."""

    def get(self, key: FactorKey | None, make: Callable[[], Factors]) -> Factors: ...

    def keep(self, key: str | None, make: Callable[[], Kept]) -> Kept: ...


@dataclass(frozen=True)
class Seen:
    """What is to be known of a task matrix (m, n), so that it need not be read again where its factors are kept.

    digest: None where they are not worth keeping. energy: its squared Frobenius norm, of a dense one.
    """

    digest: str | None
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    energy: float


def see(change: Change, address: bool = True) -> Seen:
    """Look at a task matrix. address: work out its digest, which takes longest."""
    if isinstance(change, LowRank):
        return Seen(None, change.shape, change.left.dtype, change.left.device, 0.0)
    m, n = change.shape
    energy = float(torch.linalg.vector_norm(change)) ** 2
    return Seen(digest_of(change) if address else None, (m, n), change.dtype, change.device, energy)


def see_each(changes: Sequence[Change]) -> list[Seen]:
    """Look at every task's matrix, several at a time."""
    return each_task(changes, lambda task: see(changes[task]))


def features_of(
    changes: Sequence[Change],
    task: int,
    rank: Rank = None,
    source: FactorSource | None = None,
    seen: Seen | None = None,
) -> Features:
    """One task's features, at least those that the rank keeps. seen: its matrix, where that was looked at for `source`.

    A rank cuts the features of a large matrix while they are computed; of others all are as cheap to have. A share of
    energy is asked of all features.
    """
    change = None
    if source is None or seen is None or seen.digest is None:
        change = changes[task]
        seen = see(change, address=False)
    whole = min(seen.shape)
    thin = isinstance(change, LowRank) or whole < GRAM_MIN
    cut = None if thin or isinstance(rank, str) or n_kept(rank, *seen.shape) == whole else rank

    def make() -> Factors:
        return factorise(changes[task] if change is None else change, cut)

    if source is None or seen.digest is None:
        made = make()
    else:
        key = FactorKey(seen.digest, seen.shape, seen.dtype, n_kept(cut, *seen.shape), seen.device)
        made = source.get(key, make).cut(cut)
    if cut is None:
        return Features(made)
    lost = seen.energy - float(made.S.double().square().sum())
    return Features(made, lost if lost > LOST_MIN * seen.energy else 0.0)


def each_task(changes: Sequence[Change], look: Callable[[int], Result]) -> list[Result]:
    """look(task) of every task, several at a time."""
    on_gpu = isinstance(changes, Changes) and changes.device.type != "cpu"
    return each(look, range(len(changes)), GPU_THREADS if on_gpu else torch.get_num_threads())
