"""Isotropic merging: all directions of the merge are equally strong.

    D = sum_t w_t D_t (m, n) with singular values s,   k = min(m, n), T tasks,   polar(A) = U V^T for A = U diag(s) V^T

Iso-C       D* = mean(s) polar(D)
Iso-CTS     U_0, V_0: the leading features of D, a common share of all k. U_t, V_t: of w_t D_t - U_0 U_0^T D_t, what
            the common ones leave of a task, the leading features, as many as fit. With all their gains s,
            D* = mean(s) polar([U_0 .. U_T]) polar([V_0 .. V_T])^T

Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces", ICML 2025,
arXiv 2502.04959, algorithms 1 and 2. Tensors that are not linear maps are averaged, as there.

What the paper leaves open: directions in which D has no gain above rounding are arbitrary, so they are left out here,
and mean(s) is over the others. Where D has a low rank, as for adapters, its common share is of that rank instead of k.
The authors' code and FusionBench keep whatever directions an SVD library returns. They also treat every tensor with two
dimensions as a matrix, embedding tables too, and FusionBench multiplies the averaged tensors by the scaling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sftm_app.linalg.core_space import core_bytes, core_operations, core_space, merged_size
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank, dense, weighted_sum
from sftm_app.linalg.operations import factorise_operations, thin_operations
from sftm_app.linalg.parallel import parallel_map
from sftm_app.linalg.polar import polar, polar_bytes, polar_operations
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.tolerance import rcond
from sftm_app.linalg.whitening import orthogonalise, whitening_bytes, whitening_operations
from sftm_app.linalg.workspace import factorise_bytes, factorise_thin_bytes, sum_bytes
from sftm_app.methods.base import AVERAGED, Layer, LayerSize, Method
from sftm_app.methods.params import CommonParams, number


def _scaling() -> Any:
    return number(
        1.0,
        "Scaling",
        "How strongly the result is added. The paper tunes it on validation data; 1 is the default of FusionBench.",
        minimum=0.0,
        maximum=2.0,
    )


class IsotropicParams(CommonParams):
    """What both share."""

    def unused(self) -> frozenset[str]:
        """All singular values are equal, so the directions that calibration would shrink are arbitrary."""
        return frozenset({"calibration"})


@dataclass(frozen=True)
class IsoCParams(IsotropicParams):
    """Parameters of Iso-C."""

    scaling: float = _scaling()


@dataclass(frozen=True)
class IsoCTSParams(IsotropicParams):
    """Parameters of Iso-CTS."""

    common: float = number(
        0.8,
        "Common share",
        "The share of the directions that is taken from the sum of all tasks; each task gets an equal part of the "
        "rest. 0.8 is the paper's value.",
        minimum=0.0,
        maximum=1.0,
    )
    scaling: float = _scaling()


def merge_iso_c(layer: Layer, params: IsoCParams) -> Delta:
    """Add up the task matrices and make all singular values of the sum equal to their mean."""
    total = weighted_sum(layer.task_matrices, layer.weights)
    if isinstance(total, LowRank):
        f = factorise(total)
        return LowRank(f.U * (params.scaling * _mean(f.S)), f.Vh)
    found = polar(total)
    return found.factor.mul_(params.scaling * _mean(found.gains))


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


def merge_iso_cts(layer: Layer, params: IsoCTSParams) -> Delta:
    """Flatten the leading directions of the sum together with directions of single tasks that they miss.

    One task alone gives what Iso-C gives.
    """
    space = core_space(layer.task_matrices)
    matrices = space.cores if space else layer.task_matrices
    total = factorise(dense(weighted_sum(matrices, layer.weights)))
    k = min(space.shape if space else total.shape)
    n_common, n_each = _iso_counts(k, total.rank, len(layer.weights), params.common)
    common = total.leading(n_common)
    del total

    def rest(task: int) -> Factors:
        D = dense(matrices[task])
        return _features_of_rest(D * layer.weights[task], common.U, n_each)

    found = [common]
    if n_each:
        found += parallel_map(rest, range(len(layer.weights)), layer.n_at_once)
    left, right, gains = orthogonalise(found, [1.0] * len(found), layer.n_at_once)
    delta = (left * (params.scaling * _mean(gains))) @ right
    return space.expand(delta) if space else delta


def _iso_counts(k: int, rank: int, n_tasks: int, share: float) -> tuple[int, int]:
    """How many of k directions are common, and how many each task gets, so that all are used.

    Where the sum's rank does not fill the common ones, k is that rank.
    """
    n_each = min(round((k - int(k * share)) / n_tasks), k // n_tasks)
    n_common = k - n_tasks * n_each
    return (n_common, n_each) if n_common <= rank else _iso_counts(rank, rank, n_tasks, share)


def _features_of_rest(D: Tensor, U: Tensor, count: int) -> Factors:
    """The leading features of D - U U^T D, without those that are rounding of D. Changes D."""
    least = rcond(D.dtype, *D.shape) * float(torch.linalg.vector_norm(D))
    f = factorise(D.addmm_(U, U.T @ D, alpha=-1.0), count)
    return f.leading(int(torch.gt(f.S, least).sum()))


def iso_cts_workspace(size: LayerSize, params: IsoCTSParams) -> int:
    """Bytes: the features of the sum, then every task's, then all directions side by side and their polar factors."""
    core = merged_size(size)
    n_tasks, k = len(core.features), core.k
    _, n_each = _iso_counts(min(size.m, size.n), k, n_tasks, params.common)
    one = replace(core, features=(k,), thin=(False,), n_at_once=1)
    # Next to the sum's features: every task's, its rest, and what is subtracted from it.
    rests = factorise_bytes(core, [n_each] * n_tasks) + 2 * core.n_at_once * core.matrix_bytes if n_each else 0
    steps = (sum_bytes(core), factorise_bytes(one, [k]), core.thin_bytes(k) + rests, whitening_bytes(core, k))
    return max(steps) + core_bytes(size)


def iso_cts_operations(size: LayerSize, params: IsoCTSParams) -> float:
    """Operations of factorising the sum and every task's rest, the polar factors and the product."""
    core = merged_size(size)
    n_tasks, k = len(core.features), core.k
    n_common, n_each = _iso_counts(min(size.m, size.n), k, n_tasks, params.common)
    factors = factorise_operations(replace(core, features=(k,), thin=(False,)), [k])
    rests = factorise_operations(core, [n_each] * n_tasks) + 4.0 * core.m * core.n * n_common * n_tasks
    return factors + (rests if n_each else 0.0) + whitening_operations(core, k) + core_operations(size)


def _mean(gains: Tensor) -> float:
    return float(gains.double().mean()) if gains.numel() else 0.0


METHODS = (
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
        stays_low_rank=True,
    ),
    Method(
        name="iso_cts",
        title="Iso-CTS",
        summary="Iso-C that replaces the weakest directions of the sum by directions of single tasks. For many tasks "
        "that differ.",
        reference="Marczak et al., No Task Left Behind, ICML 2025, arXiv 2502.04959",
        params=IsoCTSParams,
        merge=merge_iso_cts,
        elementwise=False,
        roles=AVERAGED,
        workspace=iso_cts_workspace,
        operations=iso_cts_operations,
        stays_low_rank=True,
    ),
)
