"""The values of the tab's controls as one value, read in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.evaluation.samples import Samples
from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.handlers import Values
from sftm_app.ui.inspect.layer_view import LayerView, look
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View
from sftm_app.ui.widgets import Sliders, slider_values
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class InspectState:
    """What a person has chosen on the tab.

    Attributes:
        tab: the name of the tab on show.
        number: of the feature, counted from 1.
        top: how many leading features the principal angles are between; None for as many as hold 90 % of the energy.
        where: the labelled samples, see evaluate.labelled.
        sample: the sample that is tried; fitted: the task that the inputs for it suit.
        factor: what the feature is multiplied by.
    """

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
    sample: Samples | None = None
    fitted: str = ""
    factor: float = 0.0
    tab: str = ""

    def look(self, studio: Studio) -> LayerView:
        """The layer.

        Raises:
            InputError: there is none of this name.
        """
        return look(studio, self.ws, self.layer)

    @property
    def now(self) -> Pinned:
        """What "Pin this view" keeps."""
        return Pinned(self.layer, self.settings)

    @property
    def view(self) -> View:
        """The same as an address describes it."""
        return View(
            tab=self.tab,
            measure=self.measure,
            about=self.about,
            layer=self.layer,
            first=self.first,
            second=self.second,
            task=self.task,
            feature=self.number - 1,
            settings=self.settings,
            pinned=self.pinned,
        )


@dataclass(frozen=True)
class Controls:
    """The components that the state is read from."""

    workspace: gr.State
    tab: gr.State
    pinned: gr.State
    measure: gr.Dropdown
    about: gr.Dropdown
    layer: gr.Dropdown
    first: gr.Dropdown
    second: gr.Dropdown
    top: gr.Slider
    task: gr.Dropdown
    number: gr.Number
    where: gr.Textbox
    weights: Sliders
    form: ParamsForm
    sample: gr.State
    fitted: gr.State
    factor: gr.Slider

    @property
    def inputs(self) -> set[Any]:
        """What every handler of the tab is given."""
        return {component for component in vars(self).values() if component is not self.form} | self.form.inputs

    def read(self, values: Values) -> InspectState:
        """The state that the controls describe.

        Raises:
            RecipeError: a control of the what-if holds something that is not understood.
        """
        ws, top = values[self.workspace], values[self.top]
        weights = slider_values(values[self.weights], len(ws.tasks)) or ws.weights
        return InspectState(
            ws=ws,
            pinned=values[self.pinned],
            measure=values[self.measure] or "",
            about=values[self.about] or "",
            layer=values[self.layer] or "",
            first=values[self.first] or "",
            second=values[self.second] or "",
            top=int(top) if top else None,
            task=values[self.task] or "",
            number=_number(values[self.number]),
            where=values[self.where] or "",
            settings=self.form.read(values, weights),
            sample=values[self.sample],
            fitted=values[self.fitted],
            factor=values[self.factor],
            tab=values[self.tab],
        )


def _number(value: Any) -> int:
    return max(1, int(value)) if isinstance(value, int | float) and value == value and abs(value) < 1e9 else 1
