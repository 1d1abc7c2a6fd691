"""TIES: trim each task vector, elect a sign per entry, and average the entries that agree with it.

    D^_t  = D_t where |D_t| is among the largest `density` of its tensor, otherwise 0           trim
    g     = sign(sum_t w_t D^_t)                                                                elect
    D*    = sum_{t in A} w_t D^_t / sum_{t in A} w_t,    A = tasks with sign(D^_t) = g          disjoint mean
    W*    = W_0 + scaling * D*

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708. Trimmed per
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sftm_app.linalg.low_rank import dense
from sftm_app.methods.base import Layer, LayerSize, Method
from sftm_app.methods.params import number


@dataclass(frozen=True)
class TiesParams:
    """Parameters of TIES."""

    density: float = number(
        0.2,
        "Density",
        "The share of each task vector that is kept: its largest entries, tensor by tensor. 0.2 is the paper's value.",
        minimum=0.01,
        maximum=1.0,
    )
    scaling: float = number(
        1.0,
        "Scaling",
        "How strongly the merged task vector is added. 1 is the paper's value without a validation set.",
        minimum=0.0,
        maximum=2.0,
    )


def merge(layer: Layer, params: TiesParams) -> Tensor:
    """Trim, elect and average the task matrices; each is read twice, so that one is held at a time."""
    elected, thresholds = _elect(layer, params.density)
    total, weights = torch.zeros_like(elected), torch.zeros_like(elected)
    for task, (weight, smallest) in enumerate(zip(layer.weights, thresholds, strict=True)):
        # The magnitudes of the entries that agree with the elected sign; 0 elsewhere.
        agreeing = trim(dense(layer.task_matrices[task]), smallest).mul_(elected).relu_()
        total.add_(agreeing, alpha=weight)
        weights.add_(agreeing.sign_(), alpha=weight)
        del agreeing  # before the next task is read
    # Where no task agrees the total is 0.
    return total.mul_(elected).div_(weights.clamp_min_(torch.finfo(total.dtype).tiny)).mul_(params.scaling)


def _elect(layer: Layer, density: float) -> tuple[Tensor, list[float]]:
    """The elected sign of every entry, and each task's threshold."""
    votes: Tensor | None = None
    thresholds = []
    for task, weight in enumerate(layer.weights):
        matrix = dense(layer.task_matrices[task])
        thresholds.append(threshold(matrix, density))
        trimmed = trim(matrix, thresholds[-1])
        votes = trimmed.mul_(weight) if votes is None else votes.add_(trimmed, alpha=weight)
        del matrix, trimmed  # before the next task is read
    assert votes is not None, "a layer has at least one task"
    return votes.sign_(), thresholds


def threshold(D: Tensor, density: float) -> float:
    """The smallest magnitude that trimming keeps.

    Args:
        D: a tensor of any shape with at least one entry.
        density: the share of entries to keep, above 0 and at most 1.
    """
    n_dropped = D.numel() - max(1, round(density * D.numel()))
    magnitudes = D.abs().flatten()
    if D.device.type == "cpu":  # numpy selects ten times as fast as torch
        return float(np.partition(magnitudes.numpy(), n_dropped)[n_dropped])
    return float(magnitudes.kthvalue(n_dropped + 1).values)


def trim(D: Tensor, smallest: float) -> Tensor:
    """A copy of D with 0 in place of every entry whose magnitude is below `smallest`."""
    below = torch.nextafter(D.new_tensor(smallest), D.new_zeros(()))
    return torch.nn.functional.hardshrink(D, float(below))  # keeps what is strictly above


def workspace(size: LayerSize, params: TiesParams) -> int:
    """Bytes: one task matrix as it is read, a copy of it, and three sums."""
    return size.tensor_bytes + size.stored_bytes + 4 * size.matrix_bytes


def operations(size: LayerSize, params: TiesParams) -> float:
    """Operations: the passes over every entry run at the speed of memory, so each counts for many."""
    return 4000.0 * size.m * size.n * len(size.features)


METHOD = Method(
    name="ties",
    title="TIES",
    summary="Keeps the largest changes of each task and averages those that agree in sign. For tasks that disagree.",
    reference="Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708",
    params=TiesParams,
    merge=merge,
    elementwise=False,
    roles={"embedding": "method", "bias": "method", "norm": "method"},
    workspace=workspace,
    operations=operations,
)
