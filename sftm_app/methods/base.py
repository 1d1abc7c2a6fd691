"""The contract of a merge method: what it is given, what it returns, and how it describes itself.

A method is a file in this folder and a line in `sftm_app.methods.METHODS`. Its file imports this file, `params` and
linalg, nothing else. Nothing outside the file compares the method's name: the engine, the planner, Inspect and the
report use the fields below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from sftm_app.errors import RecipeError
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors, Rank
from sftm_app.linalg.low_rank import Delta, weighted_sum
from sftm_app.linalg.metric import Metric
from sftm_app.linalg.workspace import LayerSize, sum_bytes
from sftm_app.methods.params import common_of

__all__ = [
    "AVERAGED",
    "Combination",
    "Features",
    "Layer",
    "LayerSize",
    "Merged",
    "Method",
    "Rank",
    "SolveFigures",
    "TaskVector",
    "refuse_task_count",
    "weighted_average",
]


ROLES = {"embedding", "bias", "norm"}
RULES = {"sum", "average", "method"}
# For `Method.roles`: everything but linear maps is averaged.
AVERAGED: Mapping[str, str] = dict.fromkeys(("embedding", "bias", "norm"), "average")


@dataclass(frozen=True, eq=False)
class Features:
    """The leading singular features of one task matrix.

    Attributes:
        factors: all features, or at least those that the rank keeps.
        lost: the sum of squares of the gains that `factors` leaves out.
    """

    factors: Factors
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer as a method sees it: a linear map (m, n), or a tensor of another role in its own shape.

    Everything is in the compute dtype on the compute device. An elementwise method may be given a piece of a tensor.

    Attributes:
        task_matrices: the T task matrices D_t, dense or low-rank. Each is read when it is asked for, and never kept. Do
            not change them.
        weights: T positive task weights.
        idle_weight: the summed weights of adapters that leave this layer as it is: tasks whose task matrix is zero.
        n_threads: how many threads may compute at once.
        n_at_once: how many tasks a method may read and factorise at once, by as many threads.
        read_base: see `base`.
        factorise: see `features`.
        name: the tensor's name in the base, with the part's label in brackets where it holds several maps.
        task_names: the tasks' names, no two alike, in the order of `task_matrices`. With `name` they identify a task
            matrix wherever it is merged, so random masks are drawn from them.
        prepared: what `Method.prepare` found for each of these tasks; empty where the method needs nothing.
        depth: of its block among the model's: 0 for the first, 1 for the last; None outside blocks.
        kind: of submodule: "attention", "mlp", "embedding", or "other".
    """

    task_matrices: Sequence[Delta]
    weights: Sequence[float]
    read_base: Callable[[], Tensor]
    factorise: Callable[[], Sequence[Features]]
    idle_weight: float = 0.0
    n_threads: int = 1
    n_at_once: int = 1
    name: str = ""
    task_names: Sequence[str] = ()
    prepared: Sequence[float] = ()
    depth: float | None = None
    kind: str = "other"

    def base(self) -> Tensor:
        """The base's weight W_0, in the shape of the task matrices. Do not change it."""
        return self.read_base()

    def features(self) -> Sequence[Features]:
        """Every task's features, at least those that `Method.features` asks for. Factorised on the first call."""
        return self._features

    @cached_property
    def _features(self) -> Sequence[Features]:
        return self.factorise()


@dataclass(frozen=True)
class SolveFigures:
    """How a method solved a linear system for one layer, for the report.

    Attributes:
        solver: the solver that gave the result; see `linalg.solvers.Outcome`.
        n_features: the number of unknowns.
        residual: relative residual of the system.
        condition: estimated condition of the system.
        iterations: of the iterative solver.
        n_dropped: directions left out because the tasks do not determine them.
        conflicts: pairs of tasks that oppose each other.
    """

    solver: str
    n_features: int
    residual: float
    condition: float
    iterations: int
    n_dropped: int
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """What is added to the base's weight, and how a system was solved for it, if one was."""

    delta: Delta
    solve: SolveFigures | None = None


@dataclass(frozen=True)
class Combination:
    """A delta in the span of the features, named without forming it.

    D = factor * share * sum_t w_t D_t, or with a variant D = factor * superpose(variant, counts, weights, metric).

    Attributes:
        factor: what only scales the result, so that another value needs no new solve.
        weights: one per task that holds the layer.
        counts: leading features used, per task.
        variant: of the superposition to solve; None where the coefficients are known.
        metric: the norm that the superposition minimises; None for the Frobenius norm.
        share: a factor on the known coefficients.
        reports_conflicts: whether opposed tasks are a conflict. (For a plain sum they are not.)
    """

    factor: float
    weights: tuple[float, ...]
    counts: tuple[int, ...]
    variant: str | None = None
    metric: Metric | None = None
    share: float = 1.0
    reports_conflicts: bool = False


# Reads the changes of all tensors that the method merges, one task's, in pieces of any shape, float32. Called anew, it
# reads them anew.
TaskVector = Callable[[], Iterable[Tensor]]

# predict(factors, weights, idle_weight, params) -> Combination
Predict = Callable[[Sequence[Factors], Sequence[float], float, Any], Combination]


def _sum_workspace(size: LayerSize, params: Any) -> int:
    return sum_bytes(size)


def _sum_operations(size: LayerSize, params: Any) -> float:
    return float(size.m * size.n * len(size.features))


@dataclass(frozen=True)
class Method:
    """A merge method: its words, its parameters, its function, and what that function needs.

    Attributes:
        name: the word in recipes, commands and links.
        title, summary, reference: for the screen and the README.
        params: the frozen Params dataclass. A field named `scaling` multiplies the delta: the delta of any method is
            proportional to it, so the engine can cache a layer at scaling 1.
        merge: (layer, params) -> the delta, or Merged where there are figures to report. The engine may change the
            delta's tensor, so it must not be the base's.
        elementwise: each entry of the delta depends on the same entry of the task matrices alone, so the engine may
            pass pieces of a tensor. Other methods always get whole tensors.
        roles: for "embedding", "bias" and "norm" what happens to tensors of that role: "sum" (scaling times the
            weighted sum: task arithmetic), "average", or "method" (`merge` itself, on the tensor in its own shape; not
            for methods that ask for features).
        workspace: (size, params) -> bytes that `merge` holds at most, read task matrices, features and result
            included, the base's tensor not.
        operations: (size, params) -> floating-point operations of `merge`, without factorising.
        features: params -> the rank of the features that `merge` asks for; None where it asks for none.
        predict: for methods whose delta lies in the span of the features: names the delta, so that what-if answers
            without forming it.
        prepare: params -> a function of one task's whole task vector, or None where `merge` need not know any. The
            engine calls it for every task before the first layer, and `Layer.prepared` holds what it returns.
        n_tasks: the only number of tasks that it merges, or None for any.
        weights_are_shares: the delta stays the same when all task weights are multiplied by one number, as in a mean.
            In other methods it is multiplied by that number too.
        stays_low_rank: where all tasks are adapters, the delta is low-rank too, of at most the sum of their ranks. (Of
            elementwise methods and of those that ask for features this is known.)
        kind_factor: (params, kind of submodule) -> a factor on the delta there; None for 1 everywhere. The engine
            multiplies by it.
    """

    name: str
    title: str
    summary: str
    reference: str
    params: type[Any]
    merge: Callable[[Layer, Any], Delta | Merged]
    elementwise: bool
    roles: Mapping[str, str]
    workspace: Callable[[LayerSize, Any], int] = _sum_workspace
    operations: Callable[[LayerSize, Any], float] = _sum_operations
    features: Callable[[Any], Rank] | None = None
    predict: Predict | None = None
    prepare: Callable[[Any], Callable[[TaskVector], float] | None] | None = None
    n_tasks: int | None = None
    weights_are_shares: bool = False
    stays_low_rank: bool = False
    kind_factor: Callable[[Any, str], float] | None = None

    def __post_init__(self) -> None:
        if set(self.roles) != ROLES or not RULES.issuperset(self.roles.values()):
            raise ValueError(f"{self.name}: `roles` must give each of {sorted(ROLES)} one of {sorted(RULES)}.")
        if self.features and "method" in self.roles.values():
            raise ValueError(f"{self.name}: only linear maps have features, so no role in `roles` can be 'method'.")

    def place_factor(self, params: Any, depth: float | None, kind: str) -> float:
        """What the engine multiplies a delta by because of where it lies, apart from the scaling.

        Args:
            params: of this method.
            depth, kind: see `Layer`.
        """
        return common_of(params).share_at(depth) * (self.kind_factor(params, kind) if self.kind_factor else 1.0)


def weighted_average(layer: Layer) -> Delta:
    """sum_t w_t D_t / sum_t w_t, where adapters that leave the layer as it is count as D_t = 0.

    Args:
        layer: task matrices of one shape.

    Returns:
        The average: low-rank where all task matrices are, otherwise dense.
    """
    total = sum(layer.weights) + layer.idle_weight
    return weighted_sum(layer.task_matrices, [weight / total for weight in layer.weights])


def refuse_task_count(method: Method, n_tasks: int) -> None:
    """Refuse a number of tasks that a method does not merge.

    Raises:
        RecipeError: the method merges exactly so many tasks, and another number is given.
    """
    if method.n_tasks is not None and n_tasks != method.n_tasks:
        raise RecipeError(
            f"{method.title} merges exactly {method.n_tasks} tasks, not {n_tasks}. Choose another method, or "
            f"{method.n_tasks} tasks."
        )
