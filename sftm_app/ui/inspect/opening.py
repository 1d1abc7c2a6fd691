"""The view that the tab opens with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sftm_app.inspection.layers import map_layers
from sftm_app.ui.handlers import show_info
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import View
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class Opening:
    """A view whose names all exist. members: the tasks that hold its layer."""

    view: View
    members: tuple[str, ...]


def opening(studio: Studio, ws: Workspace, asked: View) -> Opening:
    """The view that was asked for, in which names that do not exist are replaced by some that do."""
    layers = map_layers(studio.preflight(ws))
    # A person may write an address without ".weight".
    named = next((one for one in layers if asked.layer in (one.name, one.name.removesuffix(".weight"))), None)
    if asked.layer and named is None:
        show_info(f"These models have no layer {asked.layer[:120]}; another one is shown.")
    layer = named or (layers[len(layers) // 2] if layers else None)
    members = tuple(ws.task_names[i] for i in layer.members) if layer else ()
    first = _one_of(asked.first, members)
    task = _one_of(asked.task, members, first)
    view = replace(
        asked,
        layer=layer.name if layer else "",
        about=asked.about if asked.about in ws.task_names else "",
        first=first,
        second=_one_of(asked.second, members, next((name for name in members if name != first), first)),
        task=task,
        feature=asked.feature if task == asked.task else 0,
    )
    return Opening(view, members)


def _one_of(name: str, members: Sequence[str], instead: str | None = None) -> str:
    return name if name in members else instead if instead is not None else next(iter(members), "")
