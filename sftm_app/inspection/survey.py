"""A whole inspection as one value, for the command line and for scripts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftm_app.engine.cache import open_store
from sftm_app.errors import InputError
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layer import LayerDetail, layer_detail
from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.measures import MEASURES, MeasureValue
from sftm_app.inspection.pair import PairAngles, pair_angles
from sftm_app.inspection.warnings import LayerWarning, layer_warnings
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.overlap import random_overlap
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.preflight.preflight import Preflight


@dataclass(frozen=True, eq=False)
class SurveyLayer:
    """One layer: its measures by name, its detail, the angles between every pair of members, what the merge would do
    to it (without its readouts) with the gains that its change then has, and what deserves a look."""

    layer: MapLayer
    measures: dict[str, MeasureValue]
    detail: LayerDetail
    angles: dict[tuple[int, int], PairAngles]
    prediction: Prediction
    gains: tuple[float, ...]
    warnings: tuple[LayerWarning, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """Every layer that was asked for, and the merge that measures, predictions and warnings are about."""

    tasks: tuple[str, ...]
    settings: MergeSettings
    layers: tuple[SurveyLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; features count from 0, angles are degrees, what belongs to a task stands under its name.

        tasks; settings: method, params, weights; layers, each with
            name, row, column, shape [m, n], tasks (those that hold it)
            measures: name -> overall, tasks
            spectra: task, gains, relative_change, effective_rank, stable_rank, ranks_for_energy, clusters
            read_overlap, write_overlap, feature_overlap: T x T, 0..1, in the order of the layer's tasks
            angles: tasks (two), k, read, write, random_read, random_write
            random_overlap: read, write: |cosine| that random directions show on average
            prediction: readout_errors, mapping_errors, ranks, norm, condition, n_dropped, conflicts, gains (the merged
            change's own singular values), coefficients (of each task's features)
            warnings: kind, sentence, view, tasks, feature, informational
        """
        settings = {
            "method": self.settings.method,
            "params": dataclasses.asdict(self.settings.params),
            "weights": dict(zip(self.tasks, self.settings.weights, strict=True)),
        }
        layers = [_layer_to_dict(one, [self.tasks[i] for i in one.layer.members]) for one in self.layers]
        return {"tasks": list(self.tasks), "settings": settings, "layers": layers}

    def to_json(self) -> str:
        """The same as a JSON document. What is not finite (the relative change of a base of zeros) is null."""
        return json.dumps(_finite(self.to_dict()), indent=1, allow_nan=False)


def _layer_to_dict(one: SurveyLayer, names: Sequence[str]) -> dict[str, Any]:
    layer, detail, prediction = one.layer, one.detail, one.prediction

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
            "coefficients": by_task([found.tolist() for found in prediction.coefficients]),
            "conflicts": [
                {"tasks": called((found.first, found.second)), "cosine": found.cosine} for found in prediction.conflicts
            ],
        },
        "warnings": [dataclasses.asdict(warning) | {"tasks": called(warning.tasks)} for warning in one.warnings],
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_layer(layers: Sequence[MapLayer], name: str) -> MapLayer:
    """The layer of this name, also without its ".weight".

    Raises
        InputError: there is none.
    """
    for layer in layers:
        if name in (layer.name, layer.name.removesuffix(".weight")):
            return layer
    known = f"Layers are named like {layers[0].name!r}." if layers else "Base and tasks share no weight matrix at all."
    raise InputError(f"There is no layer {name!r}. {known}")


def survey(
    found: Preflight, layer: str | None = None, settings: MergeSettings | None = None, split_fused: bool = False
) -> Survey:
    """Inspect one layer or all of them, one after the other: the factors of one layer are held at a time.

    settings: the merge to predict; None for SFTM's defaults with the tasks' weights. split_fused: as in map_layers.

    Raises
        InputError: there is no such layer.
        NumericalError: an input holds NaN or Inf, or no solver gives a finite answer.
    """
    layers = map_layers(found, split_fused)
    names = tuple(task.name for task in found.tasks)
    settings = settings or merge_settings("sftm", {}, [task.weight for task in found.tasks])
    chosen = layers if layer is None else (find_layer(layers, layer),)
    return Survey(names, settings, tuple(_inspect(found, one, names, settings) for one in chosen))


def _inspect(found: Preflight, layer: MapLayer, names: Sequence[str], settings: MergeSettings) -> SurveyLayer:
    what_if = WhatIf(factorise_layer(found, layer, open_store()))
    made = what_if.made
    prediction = what_if.predict(settings)
    detail = layer_detail(made, names)
    return SurveyLayer(
        layer,
        {name: measure.compute(what_if, settings) for name, measure in MEASURES.items()},
        detail,
        {(i, j): pair_angles(made, i, j) for i, j in itertools.combinations(range(len(made.factors)), 2)},
        replace(prediction, readouts=()),
        what_if.spectrum(prediction),
        layer_warnings(what_if, detail, prediction, names),
    )
