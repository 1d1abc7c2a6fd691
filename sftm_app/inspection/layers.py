"""The map of a model: which weight matrices it has, laid out as layers x modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.checkpoints.roles import Part, assign


@dataclass(frozen=True)
class MapLayer:
    """One linear map: its name, its place on the map of the model, and its shape (m, n).

    tensor: the name in the base of the tensor that holds it; part: where in it. members: indices of the tasks that
    hold it.
    """

    name: str
    row: str
    column: str
    shape: tuple[int, int]
    tensor: str
    part: Part
    members: tuple[int, ...]


_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.)")


def map_layers(found: Preflight) -> tuple[MapLayer, ...]:
    """Every weight matrix that is merged, in the order of the model: blocks by number, the rest first."""
    layers = []
    for name, info in found.base.tensors.items():
        assignment = assign(info, found.architecture.owners.get(name))
        members = tuple(i for i, match in enumerate(found.matches) if match.source(name))
        for part in assignment.parts if members else ():
            row, column = place(name)
            label = f" [{part.label}]" if part.label else ""
            layers.append(
                MapLayer(name + label, row, column + label, part.shape_in(info.shape), name, part, members)
            )
    return tuple(sorted(layers, key=lambda layer: _order(layer.name)))


def place(name: str) -> tuple[str, str]:
    """Row (block) and column (module within the block) of a tensor's name.

    "encoder.layer.3.attention.output.dense.weight" -> ("encoder.layer.3", "attention.output.dense");
    a name without a number is in the row "outside".
    """
    stem = name.removesuffix(".weight")
    found = _BLOCK.search(name)
    if not found:
        return "outside", stem
    return name[: found.end()], stem[found.end() + 1 :] or stem


def _order(name: str) -> tuple[object, ...]:
    """Natural order: numbers by value; names without a block first."""
    parts = re.split(r"(\d+)", name)
    return (bool(_BLOCK.search(name)), *(int(part) if part.isdigit() else part for part in parts))


def short_rows(rows: Sequence[str]) -> list[str]:
    """Rows as shown: the number alone when all blocks share one prefix ("encoder.layer.3" -> "3")."""
    prefixes = {row.rpartition(".")[0] for row in rows if row != "outside"}
    return [row.rpartition(".")[2] if len(prefixes) <= 1 else row for row in rows]


def short_columns(columns: Sequence[str]) -> list[str]:
    """Columns as shown: each cut to the shortest ending that none of the others shares."""
    shown = []
    for column in columns:
        parts = column.split(".")
        for n in range(1, len(parts) + 1):
            ending = ".".join(parts[-n:])
            if n == len(parts) or not any(
                other != column and (other == ending or other.endswith("." + ending)) for other in columns
            ):
                break
        shown.append(ending)
    return shown
