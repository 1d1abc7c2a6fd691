"""Everything that is computed about layers, cached while there is room: factors, what-ifs, and values of measures."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from threading import Lock
from typing import Generic, TypeVar

from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.inspection.factors import LayerFactors, factorise_layer, layer_key
from sftm_app.inspection.layer import LayerDetail, layer_detail
from sftm_app.inspection.layers import MapLayer
from sftm_app.inspection.measures import MEASURES, MeasureValue, rank_of
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import MergeSettings
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.disk_cache import DiskCache

FACTORS_LIMIT_BYTES = 2_000_000_000
WHAT_IF_LIMIT_BYTES = 1_000_000_000
DETAILS_KEPT = 256
SPECTRA_KEPT = 64
# Measures that cost next to nothing once the factors are there.
CHEAP = ("change", "effective_rank", "rank_90")
VALUES_KEPT = 100_000

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values used last, up to a size. Safe under threads: two that make the same value get the same object."""

    def __init__(self, limit: int, size: Callable[[Value], int] | None = None) -> None:
        self._kept: LRUCache[Hashable, Value] = LRUCache(limit, getsizeof=size)
        self._lock = Lock()

    def find(self, key: Hashable) -> Value | None:
        """The value, if it is cached."""
        with self._lock:
            return self._kept.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value: cached, or made now. A value larger than the limit is not cached. Raises what `make` raises."""
        known = self.find(key)
        if known is not None:
            return known
        made = make()
        with self._lock:
            known = self._kept.get(key)
            return keep(self._kept, key, made) if known is None else known


class Inspector:
    """Answers about layers. Safe under threads. Once a file changes, its layers are computed again.

    Args:
        limit_bytes: bound of the cached factors.
        what_if_limit_bytes: bound of what the cached WhatIfs may come to hold.
        cache: where factors are cached on disk.
        n_threads: how many threads may compute at once.
    """

    def __init__(
        self,
        limit_bytes: int = FACTORS_LIMIT_BYTES,
        what_if_limit_bytes: int = WHAT_IF_LIMIT_BYTES,
        cache: DiskCache | None = None,
        n_threads: int = 1,
    ) -> None:
        self._cache = cache
        self._n_threads = n_threads
        self._factors = Recent[LayerFactors](limit_bytes, lambda made: made.n_bytes)
        self._what_ifs = Recent[WhatIf](what_if_limit_bytes, lambda made: made.n_bytes)
        self._details = Recent[LayerDetail](DETAILS_KEPT)
        self._spectra = Recent[tuple[float, ...]](SPECTRA_KEPT)
        self._values = Recent[MeasureValue](VALUES_KEPT)

    def factors(self, found: Preflight, layer: MapLayer) -> LayerFactors:
        """The factors of one layer, on the CPU in float32.

        Raises:
            NumericalError: an input holds NaN or Inf.
            CheckpointError: an input changed since it was opened.
        """
        key = layer_key(found, layer)
        return self._factors.get(key, lambda: factorise_layer(found, layer, self._cache, self._n_threads))

    def what_if(self, found: Preflight, layer: MapLayer) -> WhatIf:
        """One layer under any settings. It computes when it is first asked. Raises as `factors`."""
        key = layer_key(found, layer)
        return self._what_ifs.get(key, lambda: WhatIf(self.factors(found, layer), n_threads=self._n_threads))

    def detail(self, found: Preflight, layer: MapLayer) -> LayerDetail:
        """Spectra and overlaps of one layer, which do not depend on any merge. Raises as `factors`."""
        names = tuple(task.name for task in found.tasks)
        key = (layer_key(found, layer), names)
        return self._details.get(key, lambda: layer_detail(self.factors(found, layer), names))

    def value(self, found: Preflight, layer: MapLayer, measure: str, settings: MergeSettings) -> MeasureValue:
        """One measure of one layer. Once known, it does not need the factors again. Raises as `factors`."""
        chosen, place = MEASURES[measure], layer_key(found, layer)
        asked = () if not chosen.of_method else (rank_of(settings),) if measure == "condition" else (settings,)

        def compute() -> MeasureValue:
            # A map asks each layer once. Storing A for that would take time, and the place of the layer in view.
            what_if = self._what_ifs.find(place)
            if what_if is None:
                what_if = WhatIf(self.factors(found, layer), stored=False, n_threads=self._n_threads)
            # While the factors are there: those of a large model are gone when the next measure is chosen.
            for name in CHEAP:
                if name != measure:
                    self._values.get((place, name), partial(MEASURES[name].compute, what_if, settings))
            return chosen.compute(what_if, settings)

        return self._values.get((place, measure, *asked), compute)

    def spectrum(self, found: Preflight, layer: MapLayer, settings: MergeSettings) -> tuple[float, ...]:
        """The singular values of a merge's delta in one layer, descending. Raises as `factors`."""

        def compute() -> tuple[float, ...]:
            what_if = self.what_if(found, layer)
            return what_if.spectrum(what_if.predict(settings))

        return self._spectra.get((layer_key(found, layer), settings), compute)
