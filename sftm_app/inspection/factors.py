"""Factors of task matrices, computed once and kept while there is room."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import torch
from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.checkpoints.checkpoint import Checkpoint, open_reader
from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.inspection.layers import MapLayer
from sftm_app.linalg.svd import Factors, factorise
from sftm_app.merging.run import part_of, read_change

DEFAULT_LIMIT_BYTES = 2_000_000_000


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """One layer: the base's weight as (m, n), and the full-rank Factors of each task that holds it."""

    layer: MapLayer
    base_norm: float
    factors: tuple[Factors, ...]

    @property
    def n_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for f in self.factors for t in (f.U, f.S, f.Vh))


class FactorCache:
    """Keeps the factors of the layers looked at last, up to a number of bytes. Safe under threads.

    A file that changes gets another stamp and therefore another key, so nothing stale is ever shown.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._kept: LRUCache[object, LayerFactors] = LRUCache(limit_bytes, getsizeof=lambda made: made.n_bytes)
        self._lock = Lock()

    def get(self, found: Preflight, layer: MapLayer) -> LayerFactors:
        """The factors of one layer, from the cache or computed now on the CPU in float32.

        Raises
            NumericalError: an input holds NaN or Inf.
            CheckpointError: an input changed since it was opened.
        """
        read = (found.base, *(found.tasks[i].checkpoint for i in layer.members))
        key = (layer.name, layer.part, *map(_identity, read))
        with self._lock:
            known = self._kept.get(key)
        if known is not None:
            return known
        made = factorise_layer(found, layer)
        with self._lock:
            return keep(self._kept, key, made)


def _identity(checkpoint: Checkpoint) -> tuple[object, ...]:
    return tuple(
        sorted((str(path), stamp.size_bytes, stamp.mtime_ns, stamp.inode) for path, stamp in checkpoint.stamps.items())
    )


def factorise_layer(found: Preflight, layer: MapLayer) -> LayerFactors:
    """Read one layer of base and tasks and factorise every task matrix at full rank."""
    with open_reader(found.base) as read:
        base = read.finite(layer.tensor, row=layer.part.expert)
    part = layer.part.in_slice
    weight = part.of(base)
    factors = []
    for index in layer.members:
        source = found.matches[index].source(layer.tensor)
        assert source is not None
        with open_reader(found.tasks[index].checkpoint) as read:
            change = read_change(read, source, base, base.device, layer.part.expert)
        factors.append(factorise(part_of(change, part)))
    return LayerFactors(layer, float(torch.linalg.vector_norm(weight)), tuple(factors))
