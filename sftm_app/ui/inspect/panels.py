"""All panels of the tab, and the state that their controls describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sftm_app.methods import METHODS
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.ui.forms.method_help import unfit_sentence
from sftm_app.ui.handlers import Values
from sftm_app.ui.inspect.clicks import whole
from sftm_app.ui.inspect.compare_panel import ComparePanel
from sftm_app.ui.inspect.feature_panel import FeaturePanel
from sftm_app.ui.inspect.layer_panel import LayerPanel
from sftm_app.ui.inspect.map_panel import MapPanel
from sftm_app.ui.inspect.meaning_panel import MeaningPanel
from sftm_app.ui.inspect.pairs_panel import PairsPanel
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.steer_panel import SteerPanel
from sftm_app.ui.inspect.what_if_panel import WhatIfPanel
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import slider_values
from sftm_app.ui.widgets.blocks import no_models
from sftm_app.ui.wording import BASELINE
from sftm_app.ui.workspace import Workspace


class Panels:
    """The panels, top to bottom.

    Attributes:
        pinned: the view that is pinned.
        inputs: what the state is read from, and so what every handler of the tab is given.
    """

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.workspace, self.pinned = workspace, gr.State(None)
        self.empty = no_models("Nothing to inspect yet")
        with gr.Column(visible=False, elem_classes="sf-stack") as self.body:
            self.map = MapPanel(studio)
            self.layer = LayerPanel(studio)
            with gr.Row(equal_height=False, elem_classes="sf-split"):
                with gr.Column(scale=3, min_width=420, elem_classes="sf-stack"):
                    self.layer.lay_out_spectra()
                    self.what_if = WhatIfPanel(studio, workspace)
                with gr.Column(scale=2, min_width=340, elem_id="what-if"):
                    self.what_if.lay_out_controls()
            self.pairs = PairsPanel(studio)
            self.feature = FeaturePanel(studio)
            self.meaning = MeaningPanel(studio)
            self.steer = SteerPanel(studio)
            self.compare = ComparePanel(studio, self.map.unpin)
        self._texts: dict[str, Any] = {
            "measure": self.map.measure,
            "about": self.map.about,
            "layer": self.map.layer,
            "first": self.pairs.first,
            "second": self.pairs.second,
            "task": self.feature.task,
            "where": self.meaning.where,
        }
        sample = {self.steer.sample, self.steer.fitted, self.steer.factor}
        self.inputs: set[Any] = {workspace, self.pinned, self.pairs.top, self.feature.number, *sample}
        self.inputs |= {*self._texts.values(), *self.what_if.controls}

    def _settings(self, ws: Workspace, values: Values, weights: Sequence[float]) -> MergeSettings:
        """The settings of the what-if; those of the baseline while the method does not fit the number of tasks."""
        settings = self.what_if.form.read(values, weights)
        fits = not unfit_sentence(METHODS[settings.method], len(ws.tasks))
        return settings if fits else merge_settings(BASELINE, {}, weights)

    def read(self, values: Values) -> InspectState:
        """The state that the controls describe.

        Raises:
            RecipeError: a control of the what-if holds something that is not understood.
        """
        ws, top = values[self.workspace], values[self.pairs.top]
        weights = slider_values(values[self.what_if.weights], len(ws.tasks)) or ws.weights
        texts = {name: values[component] or "" for name, component in self._texts.items()}
        return InspectState(
            **texts,
            ws=ws,
            pinned=values[self.pinned],
            top=int(top) if top else None,
            feature=max(0, (whole(values[self.feature.number]) or 1) - 1),
            settings=self._settings(ws, values, weights),
            sample=values[self.steer.sample],
            fitted=values[self.steer.fitted],
            factor=values[self.steer.factor],
        )
