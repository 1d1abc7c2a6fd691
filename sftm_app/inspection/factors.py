"""The factors of every task matrix of one layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sftm_app.engine.features import features_of
from sftm_app.engine.task_matrices import TaskMatrices, part_of, read_task_matrix
from sftm_app.engine.task_vectors import prepare
from sftm_app.inspection.layers import MapLayer
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta
from sftm_app.methods.base import Method
from sftm_app.planning.keys import factor_key, matrix_key
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.disk_cache import DiskCache
from sftm_app.weights.reader import open_reader


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """One layer, factorised.

    Attributes:
        layer: its name and place.
        base_norm: ||W_0||, the norm of the base's weight.
        factors: the full-rank factors of each task that holds the layer.
        read_base: reads W_0 (m, n).
        idle: indices of the tasks that are adapters and leave this layer as it is; for an average their delta is zero.
        task_names: of the tasks that hold the layer.
        prepare: what a method with these params finds out about the task vectors of these tasks.
    """

    layer: MapLayer
    base_norm: float
    factors: tuple[Factors, ...]
    read_base: Callable[[], Tensor]
    idle: tuple[int, ...] = ()
    task_names: tuple[str, ...] = ()
    prepare: Callable[[Method, Any], tuple[float, ...]] = lambda method, params: ()

    @property
    def n_bytes(self) -> int:
        """Bytes of the factors."""
        return sum(t.numel() * t.element_size() for f in self.factors for t in (f.U, f.S, f.Vh))


def layer_key(found: Preflight, layer: MapLayer) -> Hashable:
    """What a `LayerFactors` depends on: the layer, its tasks, and the stamps of the files that are read for it."""
    read = (found.base, *(found.tasks[i].checkpoint for i in layer.members))
    return (
        layer,
        member_names(found, layer),
        idle_tasks(found, layer),
        *(tuple(sorted(checkpoint.stamps.items())) for checkpoint in read),
    )


def idle_tasks(found: Preflight, layer: MapLayer) -> tuple[int, ...]:
    """Indices of the tasks that are adapters and leave the layer as it is."""
    adapters = (i for i, task in enumerate(found.tasks) if task.checkpoint.adapter is not None)
    return tuple(i for i in adapters if i not in layer.members)


def member_names(found: Preflight, layer: MapLayer) -> tuple[str, ...]:
    """The names of the tasks that hold the layer."""
    return tuple(found.tasks[i].name for i in layer.members)


def factorise_layer(
    found: Preflight, layer: MapLayer, cache: DiskCache | None = None, n_threads: int = 1
) -> LayerFactors:
    """Read one layer of base and tasks, and factorise every task matrix at full rank, on the CPU in float32.

    Args:
        found: base and tasks.
        layer: which one.
        cache: where factors are cached.
        n_threads: how many tasks to factorise at once.

    Raises:
        NumericalError: an input holds NaN or Inf.
        CheckpointError: an input changed since it was opened.
    """
    with ExitStack() as stack:
        base = stack.enter_context(open_reader(found.base)).finite(layer.tensor, row=layer.part.expert)
        readers = {i: stack.enter_context(open_reader(found.tasks[i].checkpoint)) for i in layer.members}
        inside = layer.part.in_slice

        def read(task: int) -> Delta:
            source = found.matches[task].source(layer.tensor)
            assert source is not None
            return part_of(read_task_matrix(readers[task], source, base, base.device, layer.part.expert), inside)

        keys = [factor_key(matrix_key(found, layer.tensor, layer.part, i), layer.shape) for i in layer.members]
        matrices = TaskMatrices(read, layer.members)
        features = features_of(matrices, keys, None, cache, n_threads, n_threads)
    norm = float(torch.linalg.vector_norm(inside.of(base)))
    factors = tuple(one.factors for one in features)
    read_base = partial(_read_base, found.base, layer)
    prepare_for = partial(_prepare, found, layer, cache)
    return LayerFactors(
        layer, norm, factors, read_base, idle_tasks(found, layer), member_names(found, layer), prepare_for
    )


def _prepare(
    found: Preflight, layer: MapLayer, cache: DiskCache | None, method: Method, params: Any
) -> tuple[float, ...]:
    prepared = prepare(found, method, params, cache)
    return tuple(prepared[task] for task in layer.members) if prepared else ()


def _read_base(base: Checkpoint, layer: MapLayer) -> Tensor:
    with open_reader(base) as read:
        return layer.part.in_slice.of(read.finite(layer.tensor, row=layer.part.expert))
