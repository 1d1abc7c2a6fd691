"""The layer that is looked at: where every panel starts from."""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.inspection.layer import LayerDetail
from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.survey import find_layer
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.recipe import Recipe
from sftm_app.plots.style import task_colour
from sftm_app.preflight.preflight import Preflight
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class LayerView:
    """One layer of the workspace. names: of all tasks of the workspace."""

    studio: Studio
    found: Preflight
    layer: MapLayer
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """The layer's name as it is shown."""
        return self.layer.name.removesuffix(".weight")

    @property
    def members(self) -> list[str]:
        """The names of the tasks that hold the layer, in order."""
        return [self.names[i] for i in self.layer.members]

    @property
    def detail(self) -> LayerDetail:
        """Spectra and overlaps of the layer."""
        return self.studio.inspector.detail(self.found, self.layer)

    @property
    def what_if(self) -> WhatIf:
        """The layer under any settings."""
        return self.studio.inspector.what_if(self.found, self.layer)

    def spectrum(self, settings: MergeSettings) -> tuple[float, ...]:
        """The singular values of the merged delta."""
        return self.studio.inspector.spectrum(self.found, self.layer, settings)

    def member(self, task: str | None) -> int:
        """The position of a task among the members; 0 for any other text."""
        members = self.members
        return members.index(task) if task in members else 0

    def pair(self, first: str | None, second: str | None) -> tuple[int, int]:
        """Positions of two different members, as near to these names as there are; twice the same for a single one."""
        one, other = self.member(first), self.member(second)
        if other == one or second not in self.members:
            other = next((i for i in range(len(self.members)) if i != one), one)
        return one, other

    def feature(self, task: str, feature: int) -> tuple[int, int | None]:
        """A feature, by its task's position among the members and its own, both from 0.

        The last feature stands for positions beyond it; None if the task has no features here.
        """
        member = self.member(task)
        n_features = int(self.studio.inspector.factors(self.found, self.layer).factors[member].rank)
        return member, min(feature, n_features - 1) if n_features else None

    def colour(self, member: int) -> str:
        """The colour of the task at this position among the members."""
        return task_colour(self.layer.members[member])


def look(studio: Studio, ws: Workspace, name: str | None) -> LayerView:
    """The layer of this name, which comes from the browser.

    Raises:
        InputError: nothing is loaded, or there is no such layer.
    """
    found = studio.preflight(ws).require()
    return LayerView(studio, found, find_layer(map_layers(found), name or ""), ws.task_names)


def default_settings(ws: Workspace) -> MergeSettings:
    """The default method with the workspace's weights."""
    return merge_settings(Recipe.method, {}, ws.weights)
