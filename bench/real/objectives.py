"""Figures of a merge that need no data, each from task matrices D_t (m x n) and the merged delta D*.

"variance"      tr(N D* M D*^T) of minimum-variance SFTM, both sides and loading 3, over its mean for the D_t
"interference"  sum_t ||(D* - D_t) D_t^T||^2 / ||D_t||^2 over the same at D* = 0: WUDI's objective (arXiv 2503.08099)
"distance"      sum_t ||D* - D_t||^2 / sum_t ||D_t||^2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.engine.task_matrices import open_readers, task_matrices_of
from sftm_app.linalg.low_rank import dense
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan

LOADING = 3.0


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the figures of one linear map need of the tasks alone, so that many merges share it.

    Attributes:
        N, M: (m, m) and (n, n), see `sftm_app.linalg.metric`.
        norms: ||D_t||^2 of each task.
        variance: the mean of tr(N D_t M D_t^T).
        interference: that of D* = 0.
    """

    N: Tensor
    M: Tensor
    norms: tuple[float, ...]
    variance: float
    interference: float


def make_yardstick(deltas: Sequence[Tensor]) -> Yardstick:
    """The yardstick of one linear map. deltas: the D_t, float32 (m, n)."""
    m, n = deltas[0].shape
    norms = tuple(float(delta.square().sum()) or 1.0 for delta in deltas)
    N, M, interference = LOADING * torch.eye(m), LOADING * torch.eye(n), 0.0
    for delta, norm in zip(deltas, norms, strict=True):
        gram = delta.T @ delta
        M += gram * (n / len(deltas) / norm)
        N.addmm_(delta, delta.T, alpha=m / len(deltas) / norm)
        interference += float(gram.square().sum()) / norm
    variance = sum(_variance(N, M, delta) for delta in deltas) / len(deltas)
    return Yardstick(N, M, norms, variance or 1.0, interference or 1.0)


def _variance(N: Tensor, M: Tensor, delta: Tensor) -> float:
    return float(((N @ delta) * (delta @ M)).sum())


def of_layer(merged: Tensor, deltas: Sequence[Tensor], by: Yardstick) -> dict[str, float]:
    """The figures of one linear map.

    Args:
        merged: D*, float32 (m, n).
        deltas: the D_t, float32 (m, n).
        by: their yardstick.
    """
    missed = distance = 0.0
    for delta, norm in zip(deltas, by.norms, strict=True):
        gap = merged - delta
        # ||G D^T||^2 = <G (D^T D), G>: whichever of the two products is smaller.
        wide = 2 * delta.shape[1] >= delta.shape[0]
        there = (gap @ delta.T).square() if wide else (gap @ (delta.T @ delta)) * gap
        missed += float(there.sum()) / norm
        distance += float(gap.square().sum())
    return {
        "variance": _variance(by.N, by.M, merged) / by.variance,
        "interference": missed / by.interference,
        "distance": distance / sum(by.norms),
    }


def objectives(plan: Plan, merged: Mapping[str, Tensor], kept: dict[str, Yardstick]) -> dict[str, float]:
    """The median of each figure over the linear maps that the method merges.

    Args:
        plan: of the merge.
        merged: its tensors by name.
        kept: the yardsticks by linear map; those that are missing are added.
    """
    rows = []
    for name, part, origin, deltas in _linear_maps(plan):
        key = part.name_in(name)
        if key not in kept:
            kept[key] = make_yardstick(deltas)
        rows.append(of_layer(part.of(merged[name].float() - origin), deltas, kept[key]))
    return {name: median(row[name] for row in rows) for name in rows[0]} if rows else {}


def _linear_maps(plan: Plan) -> Iterator[tuple[str, Part, Tensor, list[Tensor]]]:
    """Name, part, the base's tensor and the task matrices of every linear map that the method merges."""
    with open_readers(plan) as (base, tasks):
        for entry in plan.entries:
            if entry.rule != "method" or entry.in_experts:
                continue
            origin, present = base.finite(entry.name, COMPUTE_DTYPE), plan.tasks_of(entry).present
            for part in entry.parts:
                matrices = task_matrices_of(entry, part, present, tasks, origin, torch.device("cpu"))
                yield entry.name, part, origin, [dense(matrix) for matrix in matrices]
