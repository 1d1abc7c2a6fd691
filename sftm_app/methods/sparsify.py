"""Sparse task vectors: keep some entries of each task matrix, then combine what is left. One table of methods.

    D^_t  = D_t with most entries set to 0                                      sparsify
    D*    = sum_t w_t D^_t                                                      sum
    or      sum_{t in A} w_t D^_t / sum_{t in A} w_t,  entry by entry,          sign election (TIES):
            A = tasks with sign(D^_t) = sign(sum_t w_t D^_t)                    the mean of those that agree
    W*    = W_0 + scaling * D*

Sparsified by (of a tensor with N entries; `density` is the share that is kept):

    magnitude     the largest entries are kept: of the tensor, or of the whole task vector
    random        each entry is kept with probability p = density, and divided by p                    (DARE)
    outliers      the `gamma` N largest entries are dropped, and the next density N are kept            (Breadcrumbs)
    ranks         the entry of rank r (1: smallest) among the n of its row is kept with probability    (DELLA)
                  p = density - epsilon + 2 epsilon (r - 1) / (n - 1), and divided by p

References: TIES: Yadav et al., NeurIPS 2023, arXiv 2306.01708. DARE: Yu et al., ICML 2024, arXiv 2311.03099.
Breadcrumbs: Davari and Belilovsky, ECCV 2024, arXiv 2312.06795. DELLA: Deep et al., arXiv 2406.11617.

What other tools do differently:

* TIES in the paper trims the whole task vector (`trim: whole task vector`). mergekit trims tensor by tensor, which is
  the default here: it needs one pass over the files instead of three.
* DARE and DELLA in the papers divide by the probability. mergekit 0.1.5 instead scales every tensor so that the sum of
  its magnitudes stays the same. FusionBench's DARE divides by the probability.
* DARE with TIES in the paper's code trims after it drops, to the largest 20 %. At a density of 0.2 or less this changes
  nothing; above, we keep all that is left, as mergekit does. mergekit adds up the entries that agree, unless
  `normalize` is set; the paper's code and ours average them.
* Breadcrumbs in the paper cuts layer by layer, as here and in mergekit; its authors' code cuts row by row.
* Where no sign wins because the votes add up to 0, the entry is 0 here. The papers' code elects the sign of the
  majority of entries then, and mergekit elects plus.

A random mask depends on `seed`, the task's name and the tensor's name alone. So it is the same in any order of tasks,
on any device, with any number of threads, in a resumed merge and on a cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sftm_app.linalg.consensus import add_up, elect
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.sparsity import (
    RANKED,
    RANKING_BYTES,
    keep_at_random,
    keep_below_outliers,
    keep_by_rank,
    keep_from,
    keep_largest,
    smallest_kept,
)
from sftm_app.methods.base import Layer, LayerSize, Method, TaskVector
from sftm_app.methods.params import CommonParams, choice, number, whole


def _density(default: float, help: str) -> Any:
    return number(default, "Density", help, minimum=0.01, maximum=1.0)


def _scaling(default: float, help: str) -> Any:
    return number(default, "Scaling", f"How strongly the merged task vector is added. {help}", minimum=0.0, maximum=2.0)


def _seed() -> Any:
    help = "Chooses the random masks. The same seed gives the same merge."
    return whole(0, "Seed", help, minimum=0, maximum=999, searched=False)


SUMMED = "0.3 is task arithmetic's value; the best one depends on the tasks."


PER_TENSOR, WHOLE = "per tensor", "whole task vector"


def _trim() -> Any:
    return choice(
        PER_TENSOR,
        "Trim",
        "Keep this share of every tensor, or of the whole task vector as in TIES' paper, so that tensors which change "
        "much keep more. The latter reads all files twice more.",
        choices=(PER_TENSOR, WHOLE),
    )


@dataclass(frozen=True)
class TiesParams(CommonParams):
    """Parameters of TIES."""

    density: float = _density(
        0.2, "The share of each task vector that is kept: its largest entries. The paper keeps 0.2."
    )
    trim: str = _trim()
    scaling: float = _scaling(1.0, "1 is the paper's value without a validation set.")


@dataclass(frozen=True)
class MagnitudeParams(CommonParams):
    """Parameters of magnitude pruning."""

    density: float = _density(0.2, "The share of each task vector that is kept: its largest entries.")
    trim: str = _trim()
    scaling: float = _scaling(0.3, SUMMED)


def _dare_density() -> Any:
    return _density(0.1, "The probability with which an entry is kept. 0.1 is the paper's drop rate of 90 %.")


@dataclass(frozen=True)
class DareParams(CommonParams):
    """Parameters of DARE."""

    density: float = _dare_density()
    seed: int = _seed()
    scaling: float = _scaling(0.3, SUMMED)


@dataclass(frozen=True)
class DareTiesParams(CommonParams):
    """Parameters of DARE with TIES."""

    density: float = _dare_density()
    seed: int = _seed()
    scaling: float = _scaling(1.0, "1 is TIES' value without a validation set.")


def _breadcrumbs_density() -> Any:
    return _density(0.15, "The share of each tensor that is kept: the largest entries below the outliers.")


def _gamma() -> Any:
    return number(0.006, "Outliers", "The share of each tensor that is dropped as too large.", minimum=0.0, maximum=0.5)


@dataclass(frozen=True)
class BreadcrumbsParams(CommonParams):
    """Parameters of Breadcrumbs: the values from which its authors' search starts."""

    density: float = _breadcrumbs_density()
    gamma: float = _gamma()
    scaling: float = _scaling(0.2, "0.2 is where its authors' search starts.")


@dataclass(frozen=True)
class BreadcrumbsTiesParams(CommonParams):
    """Parameters of Breadcrumbs with TIES."""

    density: float = _breadcrumbs_density()
    gamma: float = _gamma()
    scaling: float = _scaling(1.0, "1 is TIES' value without a validation set.")


def _mean_density() -> Any:
    return _density(0.7, "The probability with which an entry is kept, on average. 0.7 is its authors' example.")


def _epsilon() -> Any:
    return number(
        0.07,
        "Spread",
        "The largest entry of a row is kept with a probability of density plus this, the smallest with density minus "
        "this. Cut to what keeps both between 0 and 1.",
        minimum=0.0,
        maximum=0.5,
    )


@dataclass(frozen=True)
class DellaParams(CommonParams):
    """Parameters of DELLA: the values of its authors' example."""

    density: float = _mean_density()
    epsilon: float = _epsilon()
    seed: int = _seed()
    scaling: float = _scaling(1.1, "1.1 is its authors' example.")


@dataclass(frozen=True)
class DellaLinearParams(CommonParams):
    """Parameters of DELLA without the election of signs."""

    density: float = _mean_density()
    epsilon: float = _epsilon()
    seed: int = _seed()
    scaling: float = _scaling(0.3, SUMMED)


def uniform(layer: Layer, task: int, seed: int, like: Tensor) -> Tensor:
    """Random numbers in [0, 1) for one task matrix: float32, of the shape and on the device of `like`.

    Args:
        layer: its name and the task's name choose the numbers, together with `seed`.
        task: the task's place in the layer.
        seed: from the parameters.
        like: the task matrix.
    """
    words = repr((seed, layer.task_names[task], layer.name)).encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(words).digest()[:8], "big") >> 1)
    # On the CPU, whose generator gives the same numbers everywhere.
    return torch.rand(tuple(like.shape), generator=generator).to(like.device)


def _largest(D: Tensor, layer: Layer, task: int, params: Any) -> Tensor:
    return keep_from(D, layer.prepared[task]) if params.trim == WHOLE else keep_largest(D, params.density)


def _prepare(params: Any) -> Callable[[TaskVector], float] | None:
    """The smallest magnitude that is kept of a whole task vector."""
    return partial(smallest_kept, density=params.density) if params.trim == WHOLE else None


def _at_random(D: Tensor, layer: Layer, task: int, params: Any) -> Tensor:
    return keep_at_random(D, uniform(layer, task, params.seed, D) < params.density, params.density)


def _below_outliers(D: Tensor, layer: Layer, task: int, params: Any) -> Tensor:
    return keep_below_outliers(D, params.density, params.gamma)


def _by_rank(D: Tensor, layer: Layer, task: int, params: Any) -> Tensor:
    return keep_by_rank(D, uniform(layer, task, params.seed, D), params.density, params.epsilon)


@dataclass(frozen=True)
class Sparsifier:
    """A way to sparsify a task matrix.

    Attributes:
        function: (D, layer, task, params) -> a sparse copy of D.
        matrices: float32 matrices of the shape of D that it holds at most besides D, its result and what the allocator
            keeps included.
        operations: what an entry costs, in floating-point operations that take as long.
    """

    function: Callable[[Tensor, Layer, int, Any], Tensor]
    matrices: float
    operations: float


@dataclass(frozen=True)
class Consensus:
    """A way to combine sparse task matrices. Attributes as those of `Sparsifier`; `matrices` are the sums."""

    function: Callable[[Sequence[float], Callable[[int], Tensor]], Tensor]
    matrices: float
    operations: float


MAGNITUDE = Sparsifier(_largest, 1.5, 500.0)
RANDOM = Sparsifier(_at_random, 1.5, 1000.0)
OUTLIERS = Sparsifier(_below_outliers, 2.5, 2500.0)
RANKS = Sparsifier(_by_rank, 2.0, 11000.0)
SUM = Consensus(add_up, 1.0, 100.0)
ELECTION = Consensus(elect, 4.0, 1000.0)


# What an entry costs in the two passes that count the magnitudes of a whole task vector.
COUNTING = 1500.0


def merge(layer: Layer, params: Any, sparsifier: Sparsifier, consensus: Consensus) -> Tensor:
    """Sparsify the task matrices one after the other, and combine them."""

    def sparse(task: int) -> Tensor:
        return sparsifier.function(dense(layer.task_matrices[task]), layer, task, params)

    return consensus.function(layer.weights, sparse).mul_(params.scaling)


def workspace(size: LayerSize, params: Any, sparsifier: Sparsifier, consensus: Consensus) -> int:
    """Bytes: one task matrix as it is read, its sparse copy on the way, and the sums."""
    ranking = RANKING_BYTES * max(RANKED, size.n) if sparsifier is RANKS else 0
    matrices = sparsifier.matrices + consensus.matrices
    return size.tensor_bytes + size.stored_bytes + int(matrices * size.matrix_bytes) + ranking


def operations(size: LayerSize, params: Any, sparsifier: Sparsifier, consensus: Consensus) -> float:
    """Operations: the passes over every entry run at the speed of memory, so each counts for many."""
    counting = COUNTING if getattr(params, "trim", PER_TENSOR) == WHOLE else 0.0
    return (counting + sparsifier.operations + consensus.operations) * size.m * size.n * len(size.features)


def _row(
    name: str,
    title: str,
    summary: str,
    reference: str,
    params: type[CommonParams],
    sparsifier: Sparsifier,
    consensus: Consensus,
) -> Method:
    return Method(
        name,
        title,
        summary,
        reference,
        params,
        merge=partial(merge, sparsifier=sparsifier, consensus=consensus),
        elementwise=False,  # thresholds and masks belong to whole tensors
        roles={"embedding": "method", "bias": "method", "norm": "method"},
        workspace=partial(workspace, sparsifier=sparsifier, consensus=consensus),
        prepare=_prepare if sparsifier is MAGNITUDE else None,
        operations=partial(operations, sparsifier=sparsifier, consensus=consensus),
        weights_are_shares=consensus is ELECTION,
    )


TIES = "Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708"
DARE = "Yu et al., Language Models are Super Mario, ICML 2024, arXiv 2311.03099"
BREADCRUMBS = "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, arXiv 2312.06795"
DELLA = "Deep et al., DELLA-Merging, arXiv 2406.11617"

METHODS = (
    _row(
        "ties",
        "TIES",
        "Keeps the largest changes of each task and averages those that agree in sign. For tasks that disagree.",
        TIES,
        TiesParams,
        MAGNITUDE,
        ELECTION,
    ),
    _row(
        "dare_linear",
        "DARE, linear",
        "Keeps a few changes of each task at random, enlarges them to make up for it, and adds them up.",
        DARE,
        DareParams,
        RANDOM,
        SUM,
    ),
    _row(
        "dare_ties",
        "DARE + TIES",
        "Keeps a few changes of each task at random, and averages those that agree in sign.",
        f"{DARE}; {TIES}",
        DareTiesParams,
        RANDOM,
        ELECTION,
    ),
    _row(
        "breadcrumbs",
        "Breadcrumbs",
        "Drops the smallest changes of each task and the few largest, and adds up the rest. For tasks with outliers.",
        BREADCRUMBS,
        BreadcrumbsParams,
        OUTLIERS,
        SUM,
    ),
    _row(
        "breadcrumbs_ties",
        "Breadcrumbs + TIES",
        "Drops the smallest changes of each task and the few largest, and averages those that agree in sign.",
        f"{BREADCRUMBS}; {TIES}",
        BreadcrumbsTiesParams,
        OUTLIERS,
        ELECTION,
    ),
    _row(
        "della",
        "DELLA",
        "Keeps changes at random, large ones more often, and averages those that agree in sign.",
        DELLA,
        DellaParams,
        RANKS,
        ELECTION,
    ),
    _row(
        "della_linear",
        "DELLA, linear",
        "Keeps changes at random, large ones more often, and adds them up.",
        DELLA,
        DellaLinearParams,
        RANKS,
        SUM,
    ),
    _row(
        "magnitude",
        "Magnitude pruning",
        "Keeps the largest changes of each task and adds them up. Shows what TIES owes to its election of signs.",
        TIES,
        MagnitudeParams,
        MAGNITUDE,
        SUM,
    ),
)
