"""Merge methods that change the spectrum of whole matrices. One function and one row of the table below for each.

With D_t = U_t S_t V_t^T the task matrices (m, n), k = min(m, n), T tasks, and polar(A) = U V^T for A = U S V^T:

TSV-M       D* = polar([U_1 .. U_T]) diag(S_1 .. S_T) polar([V_1 .. V_T])^T,   the leading k / T features of each task
            Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025,
            arXiv 2412.00081
Iso-C       D* = mean(s) polar(D),   D = sum_t D_t with singular values s
            Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
            ICML 2025, arXiv 2502.04959

Tensors that are not linear maps are averaged, as in the papers. A task with weight w counts as w D_t.

What the papers leave open: directions in which a matrix has no gain above rounding are arbitrary, so they are left out
here, and mean(s) is over the others. For adapters the sum has a low rank, and its mean is over that rank. FusionBench
and the authors' code divide by k and keep whatever directions the SVD library returns. They also treat every tensor
with two dimensions as a matrix (embedding tables too) and multiply the averaged tensors by the scaling; here a matrix
is a linear map, which a convolution is too. Where k / T is no whole number it is rounded down, as there, but not below
1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank, weighted_sum
from sftm_app.linalg.operations import factorise_operations, thin_operations
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.polar import polar, polar_bytes, polar_operations
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.workspace import factorise_bytes, factorise_thin_bytes, sum_bytes
from sftm_app.methods.base import Layer, LayerSize, Method
from sftm_app.methods.params import CommonParams, number


def _scaling(help: str) -> Any:
    return number(1.0, "Scaling", help, minimum=0.0, maximum=2.0)


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
    scaling: float = _scaling("How strongly the result is added. 1 is the paper's value.")


@dataclass(frozen=True)
class IsoCParams(CommonParams):
    """Parameters of Iso-C."""

    scaling: float = _scaling(
        "How strongly the result is added. The paper tunes it on validation data; 1 is the default of FusionBench."
    )


# --- TSV-M ------------------------------------------------------------------------------------------------------------


def merge_tsv(layer: Layer, params: TSVParams) -> Delta:
    """Keep each task's leading features, and orthogonalise the directions of all tasks together.

    T copies of one task give it once. One task alone comes out as it is.
    """
    n_tasks = len(layer.weights)

    def leading(task: int) -> tuple[Factors, bool]:
        D = layer.task_matrices[task]
        return factorise(D, _tsv_count(*D.shape, n_tasks, params.share)), isinstance(D, LowRank)

    found = parallel_map(leading, range(n_tasks), layer.n_threads)
    thin = all(is_thin for _, is_thin in found)
    U = torch.cat([f.U for f, _ in found], dim=1)
    Vh = torch.cat([f.Vh for f, _ in found])
    gains = torch.cat([f.S * weight for (f, _), weight in zip(found, layer.weights, strict=True)])
    del found
    left, right = parallel_map(lambda side: polar(side).factor, (U, Vh), layer.n_threads)
    left = left * (gains * params.scaling)
    return LowRank(left, right) if thin else left @ right


def _tsv_count(m: int, n: int, n_tasks: int, share: float) -> int:
    """How many features each of `n_tasks` tasks keeps of an (m, n) matrix."""
    return max(1, int(min(m, n) * share / n_tasks))


def _tsv_counts(size: LayerSize, params: TSVParams) -> list[int]:
    count = _tsv_count(size.m, size.n, len(size.features), params.share)
    return [min(count, features) for features in size.features]


def tsv_workspace(size: LayerSize, params: TSVParams) -> int:
    """Bytes: factorising every task, then all directions side by side, their polar factors and the result."""
    counts = _tsv_counts(size, params)
    rank = sum(counts)
    sides = sorted(polar_bytes(length, rank) for length in (size.m, size.n))
    whitening = 2 * size.thin_bytes(rank) + (sum(sides) if size.n_at_once > 1 else sides[-1])
    result = 4 * size.m * rank + (0 if all(size.thin) else size.matrix_bytes)
    return max(factorise_bytes(size, counts), whitening, 2 * size.thin_bytes(rank) + result)


def tsv_operations(size: LayerSize, params: TSVParams) -> float:
    """Operations of factorising every task, the polar factors and the product."""
    counts = _tsv_counts(size, params)
    rank = sum(counts)
    whitening = polar_operations(size.m, rank) + polar_operations(size.n, rank)
    return factorise_operations(size, counts) + whitening + 2.0 * size.m * size.n * rank


# --- Iso-C ------------------------------------------------------------------------------------------------------------


def merge_iso_c(layer: Layer, params: IsoCParams) -> Delta:
    """Add up the task matrices and make all singular values of the sum equal to their mean."""
    total = weighted_sum(layer.task_matrices, layer.weights)
    if isinstance(total, LowRank):
        f = factorise(total)
        return LowRank(f.U * (params.scaling * _mean(f.S)), f.Vh)
    found = polar(total)
    return found.factor.mul_(params.scaling * _mean(found.gains))


def _mean(gains: torch.Tensor) -> float:
    return float(gains.double().mean()) if gains.numel() else 0.0


def iso_c_workspace(size: LayerSize, params: IsoCParams) -> int:
    """Bytes: the sum, then its polar factor."""
    if all(size.thin):
        rank = sum(size.features)
        return max(sum_bytes(size), size.thin_bytes(rank) + factorise_thin_bytes(size.m, size.n, rank))
    return max(sum_bytes(size), size.matrix_bytes + polar_bytes(size.m, size.n))


def iso_c_operations(size: LayerSize, params: IsoCParams) -> float:
    """Operations of the sum and of its polar factor."""
    n_tasks, rank = len(size.features), sum(size.features)
    if all(size.thin):
        return thin_operations(size.m, size.n, rank)
    return float(size.m * size.n * n_tasks) + polar_operations(size.m, size.n)


# ----------------------------------------------------------------------------------------------------------------------

AVERAGED = {"embedding": "average", "bias": "average", "norm": "average"}

METHODS = (
    Method(
        name="tsv_m",
        title="TSV-M",
        summary="Keeps an equal number of each task's strongest directions and makes them orthogonal, so that tasks do "
        "not add up where they overlap. A strong choice without tuning.",
        reference="Gargiulo et al., Task Singular Vectors, CVPR 2025, arXiv 2412.00081",
        params=TSVParams,
        merge=merge_tsv,
        elementwise=False,
        roles=AVERAGED,
        workspace=tsv_workspace,
        operations=tsv_operations,
    ),
    Method(
        name="iso_c",
        title="Iso-C",
        summary="The sum of all tasks' changes with all its directions equally strong, so that no task or shared "
        "direction dominates. For many tasks of similar kind.",
        reference="Marczak et al., No Task Left Behind, ICML 2025, arXiv 2502.04959",
        params=IsoCParams,
        merge=merge_iso_c,
        elementwise=False,
        roles=AVERAGED,
        workspace=iso_c_workspace,
        operations=iso_c_operations,
    ),
)
