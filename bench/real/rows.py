"""The rows of the tables: every method at its published default, and the grid from which its best is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.real.bench import Settings, settings
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls

# Sums of eight tasks need a small scaling, spectral methods one near 1.
SCALINGS = (0.15, 0.3, 0.6, 1.0, 1.5)
# The main parameter of a method and the values that are tried, where it is not the scaling.
GRIDS: dict[str, tuple[str, Sequence[Any]]] = {
    "cart": ("coefficient", SCALINGS),
}
# Named variants that are rows of their own.
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("SFTM, the paper's readout", "sftm", {"variant": "readout", "calibration": 0.0, "rank": None}),
    ("SVC of the sum", "task_arithmetic", {"scaling": 1.0, "calibration": 1.0}),
)


@dataclass(frozen=True)
class Row:
    """A line of the tables. grid: the settings from which the best is taken on the validation samples."""

    title: str
    default: Settings
    grid: tuple[Settings, ...]


def rows() -> list[Row]:
    """The methods in the order of the app, then the named variants."""
    found = [Row(method.title, Settings(name), grid_of(name, {})) for name, method in METHODS.items()]
    for title, name, params in VARIANTS:
        found.append(Row(title, settings(name, **params), grid_of(name, params)))
    return found


def grid_of(name: str, params: dict[str, Any]) -> tuple[Settings, ...]:
    """At most five settings of one method, besides those in `params`; none if it has nothing to choose."""
    known = controls(METHODS[name].params)
    field, values = GRIDS.get(name, ("scaling", SCALINGS))
    if field not in known:
        return ()
    return tuple(settings(name, **{**params, field: value}) for value in values)
