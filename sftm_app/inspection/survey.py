"""A whole inspection as one value, for the command line and for scripts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftm_app.errors import InputError
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layer import LayerDetail, layer_detail
from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.measures import MEASURES, MeasureValue
from sftm_app.inspection.pair import PairAngles, pair_angles
from sftm_app.inspection.warnings import LayerWarning, layer_warnings
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.overlap import random_overlap
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.recipe import DEFAULT_METHOD
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.disk_cache import DiskCache


@dataclass(frozen=True, eq=False)
class SurveyLayer:
    """One layer.

    Attributes:
        layer: its name and place.
        measures: by name.
        detail: spectra and overlaps.
        angles: between every pair of members.
        prediction: what the merge would do, without the readouts.
        gains: the singular values of the merged delta.
        warnings: what deserves a look.
    """

    layer: MapLayer
    measures: dict[str, MeasureValue]
    detail: LayerDetail
    angles: dict[tuple[int, int], PairAngles]
    prediction: Prediction
    gains: tuple[float, ...]
    warnings: tuple[LayerWarning, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """Every layer that was asked for, and the merge that measures, predictions and warnings refer to."""

    tasks: tuple[str, ...]
    settings: MergeSettings
    layers: tuple[SurveyLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. Features count from 0, angles are in degrees, and values of a task stand under its name.

        tasks; settings: method, params, weights; layers, each with
            name, row, column, shape [m, n], tasks (those that hold it)
            measures: name -> overall, tasks
            spectra: task, gains, relative_change, effective_rank, stable_rank, ranks_for_energy, clusters
            read_overlap, write_overlap, feature_overlap: T x T, 0..1, in the order of the layer's tasks
            angles: tasks (two), k, read, write, random_read, random_write
            random_overlap: read, write: the |cosine| that random directions show on average
            prediction: readout_errors, mapping_errors, ranks, norm, condition, n_dropped, conflicts, gains (singular
            values of the merged delta), coefficients (of each task's features; null for methods that do not combine
            features, and for calibrated merges)
            warnings: kind, sentence, view, tasks, feature, informational
        """
        settings = {
            "method": self.settings.method,
            "params": values_of(self.settings.params),
            "weights": dict(zip(self.tasks, self.settings.weights, strict=True)),
        }
        layers = [_layer_to_dict(one, [self.tasks[i] for i in one.layer.members]) for one in self.layers]
        return {"tasks": list(self.tasks), "settings": settings, "layers": layers}

    def to_json(self) -> str:
        """The same as a JSON document. Values that are not finite (the relative change of a base of zeros) are null."""
        return json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)


def _layer_to_dict(one: SurveyLayer, names: Sequence[str]) -> dict[str, Any]:
    layer, detail, prediction = one.layer, one.detail, one.prediction
    coefficients = prediction.coefficients

    def by_task(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(names, values, strict=True))

    def called(members: Sequence[int]) -> list[str]:
        return [names[member] for member in members]

    return {
        "name": layer.name,
        "row": layer.row,
        "column": layer.column,
        "shape": list(layer.shape),
        "tasks": list(names),
        "measures": {
            name: {"overall": value.overall, "tasks": by_task(value.tasks)} for name, value in one.measures.items()
        },
        "spectra": [dataclasses.asdict(spectrum) for spectrum in detail.spectra],
        "read_overlap": detail.read.tolist(),
        "write_overlap": detail.write.tolist(),
        "feature_overlap": detail.both.tolist(),
        "random_overlap": {"read": random_overlap(layer.shape[1]), "write": random_overlap(layer.shape[0])},
        "angles": [
            {"tasks": called(pair), "k": angles.k}
            | {name: getattr(angles, name).tolist() for name in ("read", "write", "random_read", "random_write")}
            for pair, angles in one.angles.items()
        ],
        "prediction": {
            "readout_errors": by_task(prediction.readout_errors),
            "mapping_errors": by_task(prediction.mapping_errors),
            "ranks": by_task(prediction.ranks),
            "norm": prediction.norm,
            "condition": prediction.condition,
            "n_dropped": prediction.n_dropped,
            "gains": list(one.gains),
            "coefficients": by_task([found.tolist() for found in coefficients]) if coefficients else None,
            "conflicts": [
                {"tasks": called((found.first, found.second)), "cosine": found.cosine} for found in prediction.conflicts
            ],
        },
        "warnings": [dataclasses.asdict(warning) | {"tasks": called(warning.tasks)} for warning in one.warnings],
    }


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_layer(layers: Sequence[MapLayer], name: str) -> MapLayer:
    """Find a layer by its name, with or without its ".weight".

    Raises:
        InputError: there is none.
    """
    for layer in layers:
        if name in (layer.name, layer.name.removesuffix(".weight")):
            return layer
    known = (
        f"Layers are named like {layers[0].name!r}." if layers else "Base and tasks have no weight matrix in common."
    )
    raise InputError(f"There is no layer {name!r}. {known}")


def survey(
    found: Preflight,
    layer: str | None = None,
    settings: MergeSettings | None = None,
    split_fused: bool = False,
    cache: DiskCache | None = None,
    n_threads: int = 1,
) -> Survey:
    """Inspect one layer or all of them, one after the other. Holds the factors of one layer at a time.

    Args:
        found: base and tasks.
        layer: a layer's name; None for all.
        settings: the merge to predict; None for the default method with the tasks' weights.
        split_fused: as in map_layers.
        cache: where factors are cached.
        n_threads: how many threads may compute at once.

    Raises:
        InputError: there is no such layer, or the method does not merge this many tasks.
        NumericalError: an input holds NaN or Inf, or no solver gives a finite answer.
    """
    layers = map_layers(found, split_fused)
    names = tuple(task.name for task in found.tasks)
    settings = settings or merge_settings(DEFAULT_METHOD, {}, [task.weight for task in found.tasks])
    chosen = layers if layer is None else (find_layer(layers, layer),)
    return Survey(names, settings, tuple(_inspect(found, one, names, settings, cache, n_threads) for one in chosen))


def _inspect(
    found: Preflight,
    layer: MapLayer,
    names: Sequence[str],
    settings: MergeSettings,
    cache: DiskCache | None,
    n_threads: int,
) -> SurveyLayer:
    made = factorise_layer(found, layer, cache, n_threads)
    what_if = WhatIf(made, n_threads=n_threads)
    prediction, detail = what_if.predict(settings), layer_detail(made, names)
    return SurveyLayer(
        layer=layer,
        measures={name: measure.compute(what_if, settings) for name, measure in MEASURES.items()},
        detail=detail,
        angles={(i, j): pair_angles(made, i, j) for i, j in itertools.combinations(range(len(made.factors)), 2)},
        prediction=replace(prediction, readouts=()),
        gains=what_if.spectrum(prediction),
        warnings=layer_warnings(what_if, detail, prediction, names),
    )
