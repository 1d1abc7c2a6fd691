"""TSV-M: keep every task's strongest singular directions, and make those of all tasks orthogonal.

    D_t = U_t diag(s_t) V_t^T (m, n)                            the leading k / T features, k = min(m, n), T tasks
    D*  = polar([U_1 .. U_T]) diag(w_1 s_1 .. w_T s_T) polar([V_1 .. V_T])^T
    W*  = W_0 + scaling * D*                                    polar(A) = U V^T for A = U diag(s) V^T

Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025, arXiv 2412.00081,
algorithm 1. Tensors that are not linear maps are averaged, as there. Where k / T is no whole number it is rounded down,
as in the authors' code and in FusionBench, but not below 1. Directions that tasks share exactly are counted once; the
paper leaves open what polar does with what is then missing, and these tools keep whatever an SVD library returns. They
also treat every tensor with two dimensions as a matrix, embedding tables too. Here a matrix is a linear map, which a
convolution is as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.operations import factorise_operations
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.whitening import orthogonalise, whitening_bytes, whitening_operations
from sftm_app.linalg.workspace import factorise_bytes
from sftm_app.methods.base import AVERAGED, Layer, LayerSize, Method
from sftm_app.methods.params import CommonParams, number


@dataclass(frozen=True)
class TSVParams(CommonParams):
    """Parameters of TSV-M."""

    share: float = number(
        1.0,
        "Share of the rank",
        "All tasks together keep this share of a matrix's full rank, in equal parts: with 1, each of T tasks keeps 1/T "
        "of its singular features, as in the paper.",
        minimum=0.05,
        maximum=1.0,
    )
    scaling: float = number(
        1.0, "Scaling", "How strongly the result is added. 1 is the paper's value.", minimum=0.0, maximum=2.0
    )


def merge(layer: Layer, params: TSVParams) -> Delta:
    """Keep each task's leading features, and orthogonalise the directions of all tasks together.

    T copies of one task give its leading features once. One task alone comes out as it is.
    """
    n_tasks = len(layer.weights)

    def leading(task: int) -> tuple[Factors, bool]:
        D = layer.task_matrices[task]
        return factorise(D, _count(min(D.shape), n_tasks, params.share)), isinstance(D, LowRank)

    found = parallel_map(leading, range(n_tasks), layer.n_at_once)
    thin = all(is_thin for _, is_thin in found)
    left, right, gains = orthogonalise([f for f, _ in found], layer.weights, layer.n_at_once)
    del found
    left = left * (gains * params.scaling)
    return LowRank(left, right) if thin else left @ right


def _count(k: int, n_tasks: int, share: float) -> int:
    """How many features each of `n_tasks` tasks keeps of a matrix whose shorter side is k."""
    return max(1, int(k * share / n_tasks))


def _counts(size: LayerSize, params: TSVParams) -> list[int]:
    count = _count(size.k, len(size.features), params.share)
    return [min(count, features) for features in size.features]


def workspace(size: LayerSize, params: TSVParams) -> int:
    """Bytes: factorising every task, then all directions side by side, their polar factors and the result."""
    counts = _counts(size, params)
    return max(factorise_bytes(size, counts), whitening_bytes(size, sum(counts)))


def operations(size: LayerSize, params: TSVParams) -> float:
    """Operations of factorising every task, the polar factors and the product."""
    counts = _counts(size, params)
    return factorise_operations(size, counts) + whitening_operations(size, sum(counts))


METHOD = Method(
    name="tsv_m",
    title="TSV-M",
    summary="Keeps an equal number of each task's strongest directions and makes them orthogonal, so that tasks do "
    "not add up where they overlap. A strong choice without tuning.",
    reference="Gargiulo et al., Task Singular Vectors, CVPR 2025, arXiv 2412.00081",
    params=TSVParams,
    merge=merge,
    elementwise=False,
    roles=AVERAGED,
    workspace=workspace,
    operations=operations,
    stays_low_rank=True,
)
