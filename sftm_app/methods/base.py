"""What a merge method is. A method file imports this, linalg and params, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sftm_app.linalg.factors import Factors, Rank
from sftm_app.linalg.low_rank import Delta, weighted_sum

__all__ = ["Features", "Layer", "Merged", "Method", "Rank", "weighted_average"]


@dataclass(frozen=True, eq=False)
class Features:
    """The leading features of a task: all, or at least those that a rank keeps.

    lost: the sum of the squares of the other gains.
    """

    factors: Factors
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class CachedLayer:
    """What a method works out of a layer before its scaling: tensors, and values of JSON. found: by a merge before."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    found: bool = False


def _make(make: Callable[[], CachedLayer], made_of: Sequence[Factors] | None = None) -> CachedLayer:
    return make()


class LayerCache(Protocol):
    """Gives what an earlier merge kept of the same layer by the same method and params, whatever its scaling, or what
    `make` makes. made_of: factors, given where it follows from them and not from the tasks' weights; it is kept for all
    weights then, and for factors that were made in the same way (one matrix can have others, see features_of)."""

    def __call__(self, make: Callable[[], CachedLayer], made_of: Sequence[Factors] | None = None) -> CachedLayer: ...


@dataclass(frozen=True)
class Layer:
    """What a method sees of one layer.

    changes: the T task matrices D_t, each (m, n), dense or low-rank, in the compute dtype, on the compute device.
    weights: T positive factors.
    idle_weight: the sum of the factors of adapters that leave this layer as it is: tasks whose change is zero.
    factorise: gives the full-rank Factors of task t; the caller may keep them in a cache.
    leading: gives the Features of every task that are needed for a rank, where that costs less.
    keep: what an earlier merge kept, see Keep.
    """

    changes: Sequence[Delta]
    weights: Sequence[float]
    factorise: Callable[[int], Factors]
    idle_weight: float = 0.0
    leading: Callable[[Rank], list[Features]] | None = None
    keep: LayerCache = _make

    def features(self, rank: Rank) -> list[Features]:
        """Of every task, at least those that `rank` keeps."""
        if self.leading is not None:
            return self.leading(rank)
        return [Features(self.factorise(task)) for task in range(len(self.changes))]


@dataclass(frozen=True)
class Merged:
    """One layer's merged change, (m, n), added to the base's weight; and figures for the report (JSON values)."""

    delta: Delta
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A merge method: its words, its parameters, and what it does with each role (DESIGN section 2).

    merge_matrix merges the weights of linear maps. The rules of the other roles are "sum" (scaling times the weighted
    sum of the changes: task arithmetic) or "average" (their weighted average); `scaling` gives that factor from the
    params.
    """

    name: str
    title: str
    summary: str
    reference: str
    params: type[Any]
    merge_matrix: Callable[[Layer, Any], Merged]
    matrix_rule: str
    rules: Mapping[str, str]
    scaling: Callable[[Any], float]


def weighted_average(changes: Sequence[Delta], weights: Sequence[float], idle_weight: float = 0.0) -> Delta:
    """sum_t w_t D_t / sum_t w_t; all of one shape. idle_weight: the factors of tasks whose D_t is zero."""
    total = sum(weights) + idle_weight
    return weighted_sum(changes, [weight / total for weight in weights])
