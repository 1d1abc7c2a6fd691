"""The values of the tab's controls as one value, read in one place: every handler is given the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.inspect.layer_view import LayerView, look
from sftm_app.ui.inspect.layout import Components
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class InspectState:
    """What a person has chosen on the tab. number: of the feature, from 1. top: leading features, None: by energy."""

    ws: Workspace
    pinned: Pinned | None
    measure: str
    about: str
    layer: str
    first: str
    second: str
    top: int | None
    task: str
    number: int
    where: str
    settings: MergeSettings

    def look(self, studio: Studio) -> LayerView:
        """The layer. Raises InputError: there is none of this name."""
        return look(studio, self.ws, self.layer)

    def member(self, looked: LayerView) -> int:
        """The position of the feature's task among the layer's members."""
        return looked.member(self.task)

    @property
    def now(self) -> Pinned:
        """What Pin this view keeps."""
        return Pinned(self.layer, self.settings)

    def view(self, tab: str) -> View:
        """The same as an address knows it."""
        return View(
            tab, self.measure, self.about, self.layer, self.first, self.second, self.task, self.number - 1,
            self.settings, self.pinned,
        )  # fmt: skip


def inputs_of(made: Components, workspace: Any, pinned: Any) -> list[Any]:
    """The components that `read_state` reads, in its order."""
    return [
        workspace, pinned, made.measure, made.about, made.layer, made.first, made.second, made.top, made.task,
        made.number, made.where, *made.what_if.inputs,
    ]  # fmt: skip


def read_state(made: Components, values: tuple[Any, ...]) -> InspectState:
    """The chosen values from what the inputs gave.

    Raises
        RecipeError: a control of the what-if holds something that is not understood.
    """
    ws, pinned, measure, about, layer, first, second, top, task, number, where, *what_if = values
    return InspectState(
        ws, pinned, measure or "", about or "", layer or "", first or "", second or "", int(top) if top else None,
        task or "", _number(number), where or "", made.what_if.read(ws, tuple(what_if)),
    )  # fmt: skip


def _number(value: Any) -> int:
    return max(1, int(value)) if isinstance(value, int | float) and value == value and abs(value) < 1e9 else 1
