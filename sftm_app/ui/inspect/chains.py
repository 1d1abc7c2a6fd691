"""The steps that redraw panels, and the chains of steps behind a change."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from sftm_app.inspection.measures import MEASURES
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.map_panel import known_measure
from sftm_app.ui.inspect.panels import Panels
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.wiring import SlowStep, Step, Wiring
from sftm_app.ui.keeping import Part
from sftm_app.ui.view import view_to_query


class Chains:
    """The steps that redraw panels, and what follows a change, from quick to slow."""

    def __init__(self, panels: Panels, wiring: Wiring, part: Part) -> None:
        self._wiring, self._panels, self._part = wiring, panels, part
        layer, what_if, pairs, feature = panels.layer, panels.what_if, panels.pairs, panels.feature
        layer_outputs = {*layer.views, *pairs.choices, feature.task, *what_if.amounts}
        self.layer = Step(self._show_layer, layer_outputs)
        self.bars = Step(what_if.show, what_if.views)
        self.settled = Step(layer.show_settled, layer.settled_views)
        self.pairs = Step(pairs.show, pairs.views)
        self.feature = Step(feature.show, feature.views)
        self.comparison = Step(panels.compare.show, panels.compare.views)
        self.suit = Step(panels.steer.suit, panels.steer.inputs, quick=True)
        self.address = Step(self._note, {part.shown}, quick=True)
        self.map = SlowStep(panels.map.draw, panels.map.views, "map")
        self.map_of_settings = SlowStep(panels.map.draw, panels.map.views, "map", _map_follows_settings)
        self.meaning = SlowStep(panels.meaning.show, panels.meaning.views, "meaning")
        self.sample = SlowStep(panels.steer.show, panels.steer.views, "sample")
        self.sample_of_settings = SlowStep(panels.steer.show_if_quick, panels.steer.views, "sample")

    def _show_layer(self, state: InspectState) -> Updates:
        """Title and spectra of the layer, and the choices that it offers."""
        panels = self._panels
        return {
            **panels.layer.show(state),
            **panels.pairs.choose(state),
            **panels.feature.choose(state),
            **panels.what_if.scale_counts(state),
        }

    def _note(self, state: InspectState) -> Updates:
        return self._part.note(state.ws, urlencode(view_to_query(state)))

    def then_address(self, event: Any) -> Any:
        """Keep the address true behind an event."""
        return self._wiring.after(event, self.address)

    def layer_changed(self, event: Any) -> None:
        """What follows a layer that is shown already."""
        after = self._wiring.after
        event = after(
            event, self.bars, self.settled, self.pairs, self.feature, self.comparison, self.suit, self.address
        )
        after(event, self.meaning, self.sample)

    def feature_changed(self, event: Any) -> None:
        """What follows a feature that is shown already."""
        self._wiring.after(event, self.settled, self.suit, self.address, self.meaning, self.sample)

    def settings_changed(self, event: Any) -> None:
        """What follows settings whose errors are shown already."""
        event = self._wiring.after(event, self.settled, self.feature, self.comparison, self.address)
        self._wiring.after(event, self.map_of_settings, self.sample_of_settings)


def _map_follows_settings(state: InspectState) -> bool:
    return MEASURES[known_measure(state.measure)].of_method
