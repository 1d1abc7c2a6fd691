"""Figures of a merge that need no data, each from task matrices D_t (m x n) and the merged delta D*.

"variance"      tr(N D* M D*^T) of minimum-variance SFTM, both sides and loading 3, over its mean for the D_t
"interference"  sum_t ||(D* - D_t) D_t^T||^2 / ||D_t||^2 over the same at D* = 0: WUDI's objective (arXiv 2503.08099)
"distance"      sum_t ||D* - D_t||^2 / sum_t ||D_t||^2
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor

from sftm_app.engine.task_matrices import open_readers, task_matrices_of
from sftm_app.linalg.low_rank import dense
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan

LOADING = 3.0


def objectives(plan: Plan, merged: Mapping[str, Tensor]) -> dict[str, float]:
    """The median of each figure over the linear maps that the method merges.

    Args:
        plan: of the merge.
        merged: its tensors by name.
    """
    rows = []
    with open_readers(plan) as (base, tasks):
        for entry in plan.entries:
            if entry.rule != "method" or entry.in_experts:
                continue
            origin, present = base.finite(entry.name, COMPUTE_DTYPE), plan.tasks_of(entry).present
            for part in entry.parts:
                matrices = task_matrices_of(entry, part, present, tasks, origin, torch.device("cpu"))
                deltas = [dense(matrix) for matrix in matrices]
                rows.append(of_layer(part.of(merged[entry.name].float() - origin), deltas))
    return {name: median(row[name] for row in rows) for name in rows[0]} if rows else {}


def of_layer(merged: Tensor, deltas: list[Tensor]) -> dict[str, float]:
    """The figures of one linear map.

    Args:
        merged: D*, float32 (m, n).
        deltas: the D_t, float32 (m, n).
    """
    norms = [float(delta.square().sum()) or 1.0 for delta in deltas]
    m, n = merged.shape
    inner = [delta.T @ delta for delta in deltas]
    M = sum((gram / norm for gram, norm in zip(inner, norms, strict=True)), torch.zeros(n, n)) * (n / len(deltas))
    outer = sum((d @ d.T / norm for d, norm in zip(deltas, norms, strict=True)), torch.zeros(m, m))
    N = outer * (m / len(deltas)) + LOADING * torch.eye(m)
    M = M + LOADING * torch.eye(n)

    def variance(delta: Tensor) -> float:
        return float(((N @ delta) * (delta @ M)).sum())

    missed = 0.0
    for delta, gram, norm in zip(deltas, inner, norms, strict=True):
        gap = merged - delta
        missed += float(((gap @ gram) * gap).sum()) / norm
    there = sum(float(gram.square().sum()) / norm for gram, norm in zip(inner, norms, strict=True))
    return {
        "variance": variance(merged) / (sum(map(variance, deltas)) / len(deltas) or 1.0),
        "interference": missed / (there or 1.0),
        "distance": sum(float((merged - delta).square().sum()) for delta in deltas) / sum(norms),
    }
