"""Factors of task matrices, computed once and kept while there is room."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.engine.cache import FactorStore, factor_key
from sftm_app.engine.task_matrices import part_of, read_task_matrix
from sftm_app.inspection.layers import MapLayer
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.svd import factorise
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.checkpoint import Checkpoint, open_reader

DEFAULT_LIMIT_BYTES = 2_000_000_000


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """One layer: the norm of the base's weight (m, n), and the full-rank Factors of each task that holds it.

    idle: indices of the tasks that are adapters and leave this layer as it is: for an average their change is zero.
    """

    layer: MapLayer
    base_norm: float
    factors: tuple[Factors, ...]
    idle: tuple[int, ...] = ()

    @property
    def n_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for f in self.factors for t in (f.U, f.S, f.Vh))


class FactorCache:
    """Keeps the factors of the layers looked at last, up to a number of bytes. Safe under threads.

    A file that changes gets another stamp and therefore another key, so nothing stale is ever shown. store: where
    factors are found on disk, and kept for other processes.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES, store: FactorStore | None = None) -> None:
        self._store = store
        self._kept: LRUCache[object, LayerFactors] = LRUCache(limit_bytes, getsizeof=lambda made: made.n_bytes)
        self._lock = Lock()

    def get(self, found: Preflight, layer: MapLayer) -> LayerFactors:
        """The factors of one layer, from memory, from disk, or computed now on the CPU in float32.

        Raises
            NumericalError: an input holds NaN or Inf.
            CheckpointError: an input changed since it was opened.
        """
        key = layer_key(found, layer)
        with self._lock:
            known = self._kept.get(key)
        if known is not None:
            return known
        made = factorise_layer(found, layer, self._store)
        with self._lock:
            return keep(self._kept, key, made)


def layer_key(found: Preflight, layer: MapLayer) -> Hashable:
    """What a layer's factors follow from: the layer, and the files read for it as they are now."""
    read = (found.base, *(found.tasks[i].checkpoint for i in layer.members))
    return layer, idle_tasks(found, layer), *map(_identity, read)


def idle_tasks(found: Preflight, layer: MapLayer) -> tuple[int, ...]:
    """Indices of the tasks that are adapters and leave the layer as it is."""
    adapters = (i for i, task in enumerate(found.tasks) if task.checkpoint.adapter is not None)
    return tuple(i for i in adapters if i not in layer.members)


def _identity(checkpoint: Checkpoint) -> tuple[object, ...]:
    return tuple(sorted(checkpoint.stamps.items()))


def factorise_layer(found: Preflight, layer: MapLayer, store: FactorStore | None = None) -> LayerFactors:
    """Read one layer of base and tasks and factorise every task matrix at full rank, or take its factors from `store`."""
    with open_reader(found.base) as read:
        base = read.finite(layer.tensor, row=layer.part.expert)
    part = layer.part.in_slice
    weight = part.of(base)
    factors = []
    for index in layer.members:
        source = found.matches[index].source(layer.tensor)
        assert source is not None
        with open_reader(found.tasks[index].checkpoint) as read:
            change = read_task_matrix(read, source, base, base.device, layer.part.expert)
        matrix = part_of(change, part)
        factors.append(store.get(factor_key(matrix), partial(factorise, matrix)) if store else factorise(matrix))
    norm = float(torch.linalg.vector_norm(weight))
    return LayerFactors(layer, norm, tuple(factors), idle_tasks(found, layer))
