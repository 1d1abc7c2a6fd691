"""A whole inspection as one value, for the command line and for scripts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.errors import InputError
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layer import LayerDetail, layer_detail
from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.measures import MEASURES


@dataclass(frozen=True)
class Survey:
    """Per layer its measures (see inspection.measures) and its detail."""

    tasks: tuple[str, ...]
    layers: tuple[tuple[MapLayer, dict[str, float], LayerDetail], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tasks": list(self.tasks),
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "measures": measures,
                    "spectra": [vars(spectrum) for spectrum in detail.spectra],
                    "read_overlap": detail.read.tolist(),
                    "write_overlap": detail.write.tolist(),
                }
                for layer, measures, detail in self.layers
            ],
        }

    def to_json(self) -> str:
        return json.dumps(_finite(self.to_dict()), indent=1)


def _finite(value: Any) -> Any:
    """JSON has no infinity (the relative change of a base of zeros): null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_layer(layers: tuple[MapLayer, ...], name: str) -> MapLayer:
    """The layer of this name, also without its ".weight".

    Raises
        InputError: there is none.
    """
    for layer in layers:
        if name in (layer.name, layer.name.removesuffix(".weight")):
            return layer
    known = f"Layers are named like {layers[0].name!r}." if layers else "Base and tasks share no weight matrix at all."
    raise InputError(f"There is no layer {name!r}. {known}")


def survey(found: Preflight, layer: str | None = None) -> Survey:
    """Inspect one layer or all of them.

    Raises
        InputError: there is no such layer.
    """
    layers = map_layers(found)
    names = tuple(task.name for task in found.tasks)
    rows = []
    for chosen in layers if layer is None else (find_layer(layers, layer),):
        made = factorise_layer(found, chosen)
        measures = {name: measure.compute(made) for name, measure in MEASURES.items()}
        rows.append((chosen, measures, layer_detail(made, names)))
    return Survey(names, tuple(rows))
