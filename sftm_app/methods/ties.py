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
    elected: Tensor | None = None
    for D, weight in zip(layer.task_matrices, layer.weights, strict=True):
        trimmed = trim(dense(D), params.density) * weight
        elected = trimmed if elected is None else elected.add_(trimmed)
    assert elected is not None, "a layer has at least one task"
    elected = elected.sign_()

    total, weights = torch.zeros_like(elected), torch.zeros_like(elected)
    for D, weight in zip(layer.task_matrices, layer.weights, strict=True):
        trimmed = trim(dense(D), params.density)
        agrees = (trimmed.sign() == elected) & (trimmed != 0)
        total.add_(trimmed.mul_(agrees), alpha=weight)
        weights.add_(agrees, alpha=weight)
    # Where no task agrees the total is 0 already.
    return total.div_(weights.clamp_min_(torch.finfo(total.dtype).tiny)).mul_(params.scaling)


def trim(D: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude.

    Args:
        D: a tensor of any shape with at least one entry.
        density: the share of entries to keep, above 0 and at most 1. Entries as large as the smallest kept stay too.

    Returns:
        A new tensor with 0 in place of the others.
    """
    n_kept = max(1, round(density * D.numel()))
    magnitude = D.abs()
    threshold = magnitude.flatten().kthvalue(D.numel() - n_kept + 1).values
    return D * (magnitude >= threshold)


def workspace(size: LayerSize, params: TiesParams) -> int:
    """Bytes: one task matrix as it is read, what trimming takes (values, magnitudes, int64 positions), and two sums."""
    read = size.tensor_bytes + size.stored_bytes
    return read + 9 * size.matrix_bytes


def operations(size: LayerSize, params: TiesParams) -> float:
    """Operations: selecting the threshold reads every entry some thirty times."""
    return 60.0 * size.m * size.n * len(size.features)


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
