"""CART: the plain average, and the strongest directions in which every task differs from it.

    A  = sum_t w_t D_t / sum_t w_t
    D* = A + coefficient * T sum_t w_t [D_t - A]_rank / sum_t w_t       [.]_rank: the leading singular features

Choi et al., "Revisiting Weight Averaging for Model Merging", 2024, arXiv 2412.12153. The rank is a share of the full
rank of the matrix, 8 % in the paper; the coefficient (its lambda) is 1 or tuned on validation data. Where nothing is
cut off, the differences cancel and A is left: so at full rank, and for tensors that are not linear maps, which are
averaged. The paper has no task weights w_t: they are shares here, as in the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.linalg.core_space import core_bytes, core_operations, core_space, merged_size
from sftm_app.linalg.factors import Factors, n_kept
from sftm_app.linalg.low_rank import Delta, dense, weighted_sum
from sftm_app.linalg.operations import factorise_operations
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.workspace import factorise_bytes, sum_bytes
from sftm_app.methods.base import AVERAGED, Layer, LayerSize, Method, Rank
from sftm_app.methods.params import CommonParams, number, rank


@dataclass(frozen=True)
class CARTParams(CommonParams):
    """Parameters of CART."""

    rank: Rank = rank(
        "Rank",
        "How many singular features of each task's difference from the average are added: all (full), a count (32), a "
        "share of the full rank (8%, the paper's value), or as many as hold a share of the energy (90% energy). With "
        "all, the differences cancel.",
        0.08,
    )
    coefficient: float = number(
        1.0,
        "Coefficient",
        "How strongly the tasks' differences are added to the average. 1 is the paper's value without validation data.",
        minimum=0.0,
        maximum=3.0,
    )


def merge(layer: Layer, params: CARTParams) -> Delta:
    """Add to the plain average the leading features of every task's difference from it.

    One task alone comes out as it is. Adapters that leave the layer as it is differ from the average too.
    """
    space = core_space(layer.task_matrices)
    matrices: Sequence[Delta] = space.cores if space else layer.task_matrices
    share = 1.0 / (sum(layer.weights) + layer.idle_weight)
    average = dense(weighted_sum(matrices, [weight * share for weight in layer.weights]))
    count = _count(params.rank, *(space.shape if space else average.shape))

    def difference(task: int) -> Factors:
        return factorise(dense(matrices[task]) - average, count)

    found = parallel_map(difference, range(len(layer.weights)), layer.n_at_once)
    weights = list(layer.weights)
    if layer.idle_weight:
        found.append(factorise(average, count))
        weights.append(-layer.idle_weight)
    factor = params.coefficient * len(layer.weights) / sum(layer.weights)
    for f, weight in zip(found, weights, strict=True):
        average.addmm_(f.U * (f.S * (weight * factor)), f.Vh)
    return space.expand(average) if space else average


def _count(rank: Rank, m: int, n: int) -> Rank:
    """The rank as a count, of an (m, n) matrix: in the space that adapters share, a share would be of less."""
    return rank if rank is None or isinstance(rank, str) else n_kept(rank, m, n)


def _counts(size: LayerSize, core: LayerSize, params: CARTParams) -> list[int]:
    """How many features are computed of every difference: a share of the energy needs all."""
    count = n_kept(params.rank, size.m, size.n)
    return [min(count, core.k)] * len(core.features)


def workspace(size: LayerSize, params: CARTParams) -> int:
    """Bytes: the average, and every task's difference from it and its features."""
    core = merged_size(size)
    counts = _counts(size, core, params)
    differences = core.matrix_bytes * (1 + core.n_at_once) + factorise_bytes(core, counts)
    return max(sum_bytes(core), differences) + core_bytes(size)


def operations(size: LayerSize, params: CARTParams) -> float:
    """Operations of factorising every difference, and of the sum."""
    core = merged_size(size)
    counts = _counts(size, core, params)
    adding = sum(2.0 * core.m * core.n * (1 + count) for count in counts)
    return factorise_operations(core, counts) + adding + core_operations(size)


METHOD = Method(
    name="cart",
    title="CART",
    summary="The plain average plus the strongest directions in which each task differs from it. For tasks with "
    "much in common.",
    reference="Choi et al., Revisiting Weight Averaging for Model Merging, arXiv 2412.12153",
    params=CARTParams,
    merge=merge,
    elementwise=False,
    roles=AVERAGED,
    workspace=workspace,
    operations=operations,
    weights_are_shares=True,
    stays_low_rank=True,
)
