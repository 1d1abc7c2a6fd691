"""What every part of the tab starts from: the layer that is looked at, and the settings of the what-if."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.survey import find_layer
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.preflight.preflight import Preflight
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import task_colour
from sftm_app.ui.widgets import slider_values
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class LayerView:
    """One layer of the workspace. members: the names of the tasks that hold it, in order."""

    found: Preflight
    layer: MapLayer
    names: tuple[str, ...]

    @property
    def members(self) -> list[str]:
        return [self.names[i] for i in self.layer.members]

    def member(self, task: str | None) -> int:
        """The position among the members of a task's name; the first one's for any other text."""
        members = self.members
        return members.index(task) if task in members else 0

    def colour(self, member: int) -> str:
        """The colour of the task at this position among the members."""
        return task_colour(self.layer.members[member])


def look(studio: Studio, ws: Workspace, name: str | None) -> LayerView:
    """The layer of this name; names come from the browser.

    Raises
        InputError: nothing is loaded, or there is no such layer.
    """
    found = studio.preflight(ws).require()
    return LayerView(found, find_layer(map_layers(found), name or ""), ws.task_names)


def read_settings(ws: Workspace, weights: Any, method: tuple[str, dict[str, Any]]) -> MergeSettings:
    """The settings that the what-if's controls describe; weights that do not fit the tasks count as the workspace's.

    Raises
        RecipeError: a control holds something that is not understood.
    """
    given = slider_values(weights, len(ws.tasks))
    return merge_settings(method[0], method[1], given or own_weights(ws))


def own_weights(ws: Workspace) -> Sequence[float]:
    """The weights that the tasks of a workspace have."""
    return [task.weight for task in ws.tasks]
