"""The singular features of a layer's tasks: those that an earlier merge kept, or computed now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.engine.cache import FactorKey, factor_key, is_large
from sftm_app.engine.task_matrices import TaskMatrices
from sftm_app.errors import CheckpointError
from sftm_app.linalg.factors import Factors, Rank, n_kept
from sftm_app.linalg.gram_svd import GRAM_MIN
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.svd import factorise
from sftm_app.methods.base import CachedLayer, Features
from sftm_app.planning.memory import CPU, tasks_at_once
from sftm_app.planning.plan import COMPUTE_DTYPE, PlanEntry

# Of the energy; below, rounding of the gains is all that could be missing.
LOST_MIN = 1e-5

Result = TypeVar("Result")


class FactorSource(Protocol):
    """Where factors, and what follows from them, are kept between merges, such as factor_cache.FactorStore."""

    def recalls(self, about: str) -> bool: ...

    def get(self, key: FactorKey | None, make: Callable[[], Factors]) -> Factors: ...

    def keep(self, key: str | None, make: Callable[[], CachedLayer]) -> CachedLayer: ...

    def recall(self, about: str, make: Callable[[], Any]) -> Any: ...


@dataclass(frozen=True)
class Seen:
    """What is to be known of a task matrix, so that it need not be read again where its factors are kept.

    key: of all of them. energy: its squared Frobenius norm. recalled: from an earlier look.
    """

    key: FactorKey
    energy: float
    recalled: bool = False


def worth_keeping(entry: PlanEntry, part: Part | None) -> bool:
    """Whether any factors of a part of a tensor are sooner found than computed; those of LoRA pairs are not."""
    return part is not None and entry.n_dense > 0 and is_large(part.shape_in(entry.output.shape))


def see_each(changes: Sequence[Delta], source: FactorSource, keep: bool = True) -> list[Seen | None]:
    """Look at every task's matrix, several at a time; None for those whose factors are not worth keeping.

    One that `source` recalls from an earlier look is not read. keep: have it recall this look later.
    """

    def see(task: int) -> Seen | None:
        if not isinstance(changes, TaskMatrices):
            return _see(changes[task])
        name = changes.name(task)
        if name is None or not (keep or source.recalls(name)):
            return _see(changes[task])
        made: list[Seen] = []

        def look() -> dict[str, Any]:
            seen = _see(changes[task])
            assert seen is not None, "only large matrices have names"
            made.append(seen)
            return _values(seen)

        values = source.recall(name, look)
        return made[0] if made else _parse(values, changes.device)

    return each_task(changes, see)


def _see(change: Delta) -> Seen | None:
    key = factor_key(change)
    return None if key is None or isinstance(change, LowRank) else Seen(key, _energy(change))


def _values(seen: Seen) -> dict[str, Any]:
    """For JSON."""
    return {"digest": seen.key.digest, "shape": seen.key.shape, "energy": seen.energy}


def _parse(values: dict[str, Any], device: torch.device) -> Seen:
    m, n = values["shape"]
    return Seen(FactorKey(values["digest"], (m, n), COMPUTE_DTYPE, min(m, n), device), values["energy"], recalled=True)


def features_of(
    changes: Sequence[Delta],
    task: int,
    rank: Rank = None,
    source: FactorSource | None = None,
    seen: Seen | None = None,
) -> Features:
    """One task's features, at least those that the rank keeps. seen: its matrix, where that was looked at for `source`.

    A rank cuts the features of a large matrix while they are computed; of others all are as cheap to have. A share of
    energy is asked of all features.
    """
    if source is None or seen is None:
        change = changes[task]
        cut = None if isinstance(change, LowRank) else _cut(rank, change.shape)
        made = factorise(change, cut)
        energy = 0.0 if isinstance(change, LowRank) or cut is None else _energy(change)
    else:
        cut, energy = _cut(rank, seen.key.shape), seen.energy
        key = replace(seen.key, count=n_kept(cut, *seen.key.shape))
        made = source.get(key, lambda: factorise(_as_seen(changes[task], seen), cut)).cut(cut)
    if cut is None:
        return Features(made)
    lost = energy - float(made.S.double().square().sum())
    return Features(made, lost if lost > LOST_MIN * energy else 0.0)


def _as_seen(change: Delta, seen: Seen) -> Delta:
    """The matrix, refused where it is another than was remembered: it would be kept under a wrong address for good."""
    key = factor_key(change) if seen.recalled else seen.key
    if key is None or key.digest != seen.key.digest:
        raise CheckpointError(
            "A task matrix is another than the one that was seen in these files before, though their dates and states "
            "are the same. Remove what is kept (`sftm cache --clear`) and merge again."
        )
    return change


def _cut(rank: Rank, shape: Sequence[int]) -> Rank:
    """The rank to compute a dense matrix's features up to; None for all of them."""
    m, n = shape
    small = min(m, n) < GRAM_MIN
    return None if small or isinstance(rank, str) or n_kept(rank, m, n) == min(m, n) else rank


def _energy(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix)) ** 2


def each_task(changes: Sequence[Delta], look: Callable[[int], Result]) -> list[Result]:
    """look(task) of every task, several at a time."""
    return parallel_map(
        look, range(len(changes)), tasks_at_once(changes.device if isinstance(changes, TaskMatrices) else CPU)
    )
