"""Layers as methods see them, from tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.linalg.svd import factorise
from sftm_app.methods.base import Features, Layer, Merged, Method


def layer_of(
    matrices: Sequence[Delta],
    weights: Sequence[float] | None = None,
    base: Tensor | None = None,
    idle: float = 0.0,
    task_names: Sequence[str] | None = None,
    name: str = "layer",
) -> Layer:
    """A layer with these task matrices; the base is zero unless one is given, and tasks are called "0", "1", ..."""
    base = torch.zeros(tuple(matrices[0].shape)) if base is None else base
    weights = [1.0] * len(matrices) if weights is None else weights
    names = [str(task) for task in range(len(matrices))] if task_names is None else task_names
    return Layer(
        matrices,
        weights,
        lambda: base,
        lambda: [Features(factorise(D)) for D in matrices],
        idle,
        name=name,
        task_names=names,
    )


def prepared(method: Method, layer: Layer, params: Any) -> Layer:
    """The layer with what the method must know of the task vectors, as if it were all that the model has."""
    look = method.prepare(params) if method.prepare else None
    found = [look(lambda D=D: [dense(D)]) for D in layer.task_matrices] if look else []
    return replace(layer, prepared=found)


def merge(method: Method, layer: Layer, params: Any) -> Delta | Merged:
    """What a method makes of a layer, which is all that the model has."""
    return method.merge(prepared(method, layer, params), params)


def delta_of(result: Delta | Merged) -> Tensor:
    """What a method adds to the base, dense."""
    return dense(result.delta if isinstance(result, Merged) else result)


def random_matrices(n_tasks: int, shape: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator) for _ in range(n_tasks)]


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator))
