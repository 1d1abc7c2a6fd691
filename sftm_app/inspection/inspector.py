"""Everything that is computed about layers, kept while there is room: factors, what-ifs, and values of measures."""

from __future__ import annotations

from collections.abc import Hashable
from threading import Lock

from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.engine.cache import FactorStore
from sftm_app.inspection.factors import DEFAULT_LIMIT_BYTES, FactorCache, LayerFactors, layer_key
from sftm_app.inspection.layer import LayerDetail, layer_detail
from sftm_app.inspection.layers import MapLayer
from sftm_app.inspection.measures import MEASURES, MeasureValue, rank_of
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import MergeSettings
from sftm_app.preflight.preflight import Preflight

WHAT_IF_LIMIT_BYTES = 1_000_000_000
DETAILS_KEPT = 256
SPECTRA_KEPT = 64
# Measures that take next to nothing once the factors are there.
CHEAP = ("change", "effective_rank", "rank_90")
VALUES_KEPT = 100_000


class Inspector:
    """Answers about layers, safe to use from several threads. A file that changes is another layer to it.

    limit_bytes bounds the factors, what_if_limit_bytes what WhatIfs may come to hold; what does not fit is computed
    again each time, or read from `store` where there is one.
    """

    def __init__(
        self,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        what_if_limit_bytes: int = WHAT_IF_LIMIT_BYTES,
        store: FactorStore | None = None,
    ) -> None:
        self._factors = FactorCache(limit_bytes, store)
        self._what_ifs: LRUCache[Hashable, WhatIf] = LRUCache(what_if_limit_bytes, getsizeof=lambda kept: kept.n_bytes)
        self._details: LRUCache[Hashable, LayerDetail] = LRUCache(DETAILS_KEPT)
        self._spectra: LRUCache[Hashable, tuple[float, ...]] = LRUCache(SPECTRA_KEPT)
        self._values: LRUCache[Hashable, MeasureValue] = LRUCache(VALUES_KEPT)
        self._lock = Lock()

    def factors(self, found: Preflight, layer: MapLayer) -> LayerFactors:
        """The factors of one layer, computed on the CPU in float32.

        Raises
            NumericalError: an input holds NaN or Inf.
            CheckpointError: an input changed since it was opened.
        """
        return self._factors.get(found, layer)

    def what_if(self, found: Preflight, layer: MapLayer) -> WhatIf:
        """One layer under any settings; what it needs is computed when it is first asked. Raises as factors()."""
        key = layer_key(found, layer)
        with self._lock:
            known = self._what_ifs.get(key)
        if known is not None:
            return known
        made = self.factors(found, layer)
        with self._lock:  # of two that came here at once, both have the same one
            return self._what_ifs.get(key) or keep(self._what_ifs, key, WhatIf(made))

    def detail(self, found: Preflight, layer: MapLayer) -> LayerDetail:
        """Spectra and overlaps of one layer, which no setting of a merge changes. Raises as factors()."""
        names = tuple(task.name for task in found.tasks)
        key = (layer_key(found, layer), names)
        with self._lock:
            known = self._details.get(key)
        if known is not None:
            return known
        made = layer_detail(self.factors(found, layer), names)
        with self._lock:
            return keep(self._details, key, made)

    def value(self, found: Preflight, layer: MapLayer, measure: str, settings: MergeSettings) -> MeasureValue:
        """One measure of one layer. Once known, its factors are not needed again. Raises as factors()."""
        chosen = MEASURES[measure]
        asked = () if not chosen.of_method else (rank_of(settings),) if measure == "condition" else (settings,)
        place = layer_key(found, layer)
        key = (place, measure, *asked)
        with self._lock:
            known, what_if = self._values.get(key), self._what_ifs.get(place)
        if known is not None:
            return known
        # A map asks each layer once: keeping A for that would take time, and the place of the layer looked at.
        asked_of = what_if or WhatIf(self.factors(found, layer), stored=False)
        value = chosen.compute(asked_of, settings)
        # While a layer's factors are at hand: of a large model they are gone when the next measure is chosen.
        with self._lock:
            missing = [name for name in CHEAP if name != measure and (place, name) not in self._values]
        beside = {(place, name): MEASURES[name].compute(asked_of, settings) for name in missing}
        with self._lock:
            for known_key, known in beside.items():
                keep(self._values, known_key, known)
            return keep(self._values, key, value)

    def spectrum(self, found: Preflight, layer: MapLayer, settings: MergeSettings) -> tuple[float, ...]:
        """The singular values of what a merge adds to one layer, descending. Raises as factors()."""
        key = (layer_key(found, layer), settings)
        with self._lock:
            known = self._spectra.get(key)
        if known is not None:
            return known
        what_if = self.what_if(found, layer)
        made = what_if.spectrum(what_if.predict(settings))
        with self._lock:
            return keep(self._spectra, key, made)
