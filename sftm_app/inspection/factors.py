"""Factors of task matrices, computed once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from sftm_app.checkpoints.checkpoint import Checkpoint, open_reader
from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.checkpoints.roles import as_matrix
from sftm_app.inspection.layers import MapLayer
from sftm_app.linalg.svd import Factors, factorise

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
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[object, LayerFactors] = OrderedDict()
        self._lock = Lock()

    def get(self, found: Preflight, layer: MapLayer) -> LayerFactors:
        """The factors of one layer, from the cache or computed now on the CPU in float32.

        Raises
            NumericalError: an input holds NaN or Inf.
            CheckpointError: an input changed since it was opened.
        """
        key = (layer.name, _identity(found.base), *(_identity(found.tasks[i].checkpoint) for i in layer.members))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = factorise_layer(found, layer)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > 1 and sum(kept.n_bytes for kept in self._kept.values()) > self._limit_bytes:
                self._kept.popitem(last=False)
        return made


def _identity(checkpoint: Checkpoint) -> tuple[object, ...]:
    return tuple(
        sorted((str(path), stamp.size_bytes, stamp.mtime_ns, stamp.inode) for path, stamp in checkpoint.stamps.items())
    )


def factorise_layer(found: Preflight, layer: MapLayer) -> LayerFactors:
    """Read one layer of base and tasks and factorise every task matrix at full rank."""
    with open_reader(found.base) as read:
        base = as_matrix(read.finite(layer.name), layer.transposed)
    factors = []
    for index in layer.members:
        with open_reader(found.tasks[index].checkpoint) as read:
            weight = read.finite(found.matches[index].names[layer.name])
        factors.append(factorise(_minus(as_matrix(weight, layer.transposed), base)))
    return LayerFactors(layer, float(torch.linalg.vector_norm(base)), tuple(factors))


def _minus(weight: Tensor, base: Tensor) -> Tensor:
    return (weight - base).contiguous()
