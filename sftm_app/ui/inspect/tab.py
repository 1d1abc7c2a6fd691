"""Inspect: the map, a layer, pairs of tasks, a feature, what-if and two views side by side, all linked."""

from __future__ import annotations

from dataclasses import replace

import gradio as gr

from sftm_app.ui.handlers import Updates, Values, handle, show_info, show_warning
from sftm_app.ui.inspect.chains import Chains
from sftm_app.ui.inspect.clicks import layer_name, link_target, spectrum_point
from sftm_app.ui.inspect.layer_view import look
from sftm_app.ui.inspect.opening import opening
from sftm_app.ui.inspect.panels import Panels
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.wiring import QUICK, SLOW, Step, Wiring
from sftm_app.ui.keeping import Parts
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import View, read_query, view_from_query
from sftm_app.ui.widgets import Selection
from sftm_app.ui.workspace import Workspace

TO_COMPARISON = "() => { document.querySelector('#compare')?.scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"


class InspectTab:
    """The tab.

    Args:
        workspace: what is looked at.
    """

    def __init__(self, studio: Studio, workspace: gr.State, parts: Parts) -> None:
        self.studio, self.workspace, self.part = studio, workspace, parts.add("view", flat=True)
        self.panels = Panels(studio, workspace)
        self.wiring = Wiring(studio, self.panels)
        self.chains = Chains(self.panels, self.wiring, self.part)
        self._wire_workspace()
        self._wire_map()
        self._wire_pairs()
        self._wire_feature()
        self._wire_links()
        self._wire_what_if()
        self._wire_pin()
        self._wire_sample()

    # The workspace.

    def _wire_workspace(self) -> None:
        panels = self.panels
        outputs = {panels.empty, panels.body, panels.pinned, panels.steer.sample, panels.steer.fitted}
        outputs |= panels.map.choices | panels.pairs.choices | panels.feature.choices | panels.what_if.written
        event = self.workspace.change(handle(self.open_workspace), {self.workspace}, outputs, **SLOW)
        event = self.wiring.after(event, self.chains.layer)
        # At the same time as what follows the layer: filling the map takes as long as the model is large.
        self.wiring.after(event, self.chains.map)
        self.chains.layer_changed(event)

    def open_workspace(self, values: Values) -> Updates:
        """Show a workspace that was just loaded, with the view that its address asks for or that was shown last."""
        ws, panels, usable = values[self.workspace], self.panels, self.studio.usable(values[self.workspace])
        shown: Updates = {
            panels.empty: gr.update(visible=not usable),
            panels.body: gr.update(visible=usable),
            panels.pinned: None,
            **panels.steer.reset(),
        }
        if not usable:
            return shown
        found = opening(self.studio, ws, self._asked(ws))
        view, members = found.view, found.members
        return {
            **shown,
            panels.pinned: view.pinned,
            **panels.map.open(ws, view),
            **panels.pairs.open(members, view.first, view.second),
            **panels.feature.open(members, view.task, view.feature),
            **panels.what_if.open(ws, view.settings),
        }

    def _asked(self, ws: Workspace) -> View:
        text, is_asked = self.part.asked(ws)
        found = view_from_query(read_query(text), len(ws.tasks))
        # What was kept from an older version of the app is left out without a word.
        for problem in found.problems if is_asked else ():
            show_warning(problem)
        return found.view

    # The map and the layer.

    def _wire_map(self) -> None:
        panels, wiring, chains = self.panels, self.wiring, self.chains
        number = panels.feature.number
        # The map's frame follows the click in the browser at once; a map that is still filling must hear of it too.
        clicked = wiring.on_click(
            panels.map.map.select, self.open_layer, {panels.map.layer, number, *chains.layer.outputs}
        )
        chosen = wiring.on(panels.map.layer.input, Step(lambda state: {number: 1}, {number}))
        for event in (clicked, wiring.after(chosen, chains.layer)):
            wiring.after(event, chains.map)
            chains.layer_changed(event)
        for choice in (panels.map.measure, panels.map.about):
            chains.then_address(wiring.on_slow(choice.input, chains.map))

    def open_layer(self, state: InspectState, selection: Selection) -> Updates:
        """Show the layer whose cell of the map was clicked."""
        name = layer_name(selection)
        if name is None:
            return {}
        shown = self.chains.layer.show(replace(state, layer=name, feature=0))
        return {self.panels.map.layer: name, self.panels.feature.number: 1, **shown}

    # Pairs of tasks.

    def _wire_pairs(self) -> None:
        pairs, wiring, chains = self.panels.pairs, self.wiring, self.chains
        for overview in pairs.overviews:
            chains.then_address(wiring.on_click(overview.select, self.open_pair, pairs.views, queue=True))
        for choice in (pairs.first.input, pairs.second.input, pairs.top.release):
            chains.then_address(wiring.on(choice, chains.pairs, queue=True, trigger_mode="always_last"))

    def open_pair(self, state: InspectState, selection: Selection) -> Updates:
        """Show the pair of tasks whose cell was clicked."""
        members, cell = state.look(self.studio).members, selection.cell
        if cell is None or max(cell) >= len(members):
            return {}
        if cell[0] == cell[1]:
            show_info("A task overlaps completely with itself. Click a cell off the diagonal to see two tasks.")
            return {}
        return self.panels.pairs.show(replace(state, first=members[cell[0]], second=members[cell[1]]))

    # A feature.

    def _wire_feature(self) -> None:
        panels, wiring, chains = self.panels, self.wiring, self.chains
        outputs = panels.feature.choices | panels.feature.views
        clicks = [(panels.layer.spectra, self.open_point), (panels.feature.reasons, self.open_neighbour)]
        clicks += [(heatmap, self.open_row) for heatmap in panels.pairs.heatmaps]
        for plot, show in clicks:
            chains.feature_changed(wiring.on_click(plot.select, show, outputs))
        for event in (panels.feature.task.input, panels.feature.number.input, panels.feature.number.submit):
            chains.feature_changed(wiring.on(event, chains.feature, trigger_mode="always_last"))
        wiring.on_slow(panels.meaning.where.submit, chains.meaning)

    def open_point(self, state: InspectState, selection: Selection) -> Updates:
        """Show the feature whose point on a spectrum was clicked."""
        members, point = state.look(self.studio).members, spectrum_point(selection)
        if point is None or point[0] >= len(members):
            return {}
        return self.panels.feature.open_feature(state, members[point[0]], point[1])

    def open_row(self, state: InspectState, selection: Selection) -> Updates:
        """Show the feature of the first task whose cell was clicked."""
        cell = selection.cell
        return {} if cell is None else self.panels.feature.open_feature(state, state.first, cell[0])

    def open_neighbour(self, state: InspectState, selection: Selection) -> Updates:
        """Show the neighbour whose bar was clicked."""
        near = self.panels.feature.neighbour(state, selection)
        return {} if near is None else self.panels.feature.open_feature(state, near.task, near.feature)

    def _wire_links(self) -> None:
        panels, wiring, chains = self.panels, self.wiring, self.chains
        outputs = panels.feature.choices | panels.feature.views | panels.pairs.choices
        for links in (panels.layer.warnings, panels.feature.neighbours):
            followed = wiring.on_click(links.select, self.follow_link, outputs)
            chains.feature_changed(wiring.after(followed, chains.pairs))

    def follow_link(self, state: InspectState, selection: Selection) -> Updates:
        """Show what the link of a warning or of a neighbour leads to."""
        target = link_target(selection, state.look(self.studio).members)
        if target is None:
            return {}
        if target.feature is not None:
            return self.panels.feature.open_feature(state, target.tasks[0], target.feature)
        return {self.panels.pairs.first: target.tasks[0], self.panels.pairs.second: target.tasks[1]}

    # What if.

    def _wire_what_if(self) -> None:
        what_if, wiring, chains = self.panels.what_if, self.wiring, self.chains
        what_if.on_input(
            live=lambda event: wiring.on(event, chains.bars, trigger_mode="always_last"),
            settled=lambda event: chains.settings_changed(wiring.on(event, chains.bars)),
        )
        scaled = what_if.form.scale_ranks_with({self.workspace, self.panels.map.layer}, self._n_features)
        for event in (scaled, what_if.form.followed):
            chains.settings_changed(wiring.after(event, chains.bars))

    def _n_features(self, values: Values) -> int:
        return min(look(self.studio, values[self.workspace], values[self.panels.map.layer]).layer.shape)

    # Two views.

    def _wire_pin(self) -> None:
        panels, wiring, chains = self.panels, self.wiring, self.chains
        pin = Step(lambda state: {panels.pinned: state.now}, {panels.pinned})
        unpin = Step(lambda state: {panels.pinned: None}, {panels.pinned})
        for button, step in ((panels.map.pin, pin), (panels.map.unpin, unpin)):
            event = wiring.after(wiring.on(button.click, step), chains.comparison, chains.bars, chains.address)
            # The comparison is far below the button.
            event.then(None, None, None, js=TO_COMPARISON)

    # A sample of the person's own.

    def _wire_sample(self) -> None:
        steer, wiring, chains = self.panels.steer, self.wiring, self.chains
        boxes, sample = steer.boxes, steer.sample
        picked = wiring.on(boxes.pick.click, Step(steer.pick, {sample, *boxes.all}), queue=True)
        drawn = boxes.pad.input(handle(self.take_drawing), {boxes.pad}, sample, **QUICK)
        given = boxes.picture.input(handle(self.take_image), {boxes.picture, boxes.choices}, sample, **SLOW)
        asked = boxes.ask.click(handle(self.take_written), {sample, *boxes.values}, sample, **SLOW)
        for event in (picked, drawn, given, asked):
            wiring.after(event, chains.sample)
        wiring.on_slow(steer.factor.release, chains.sample)

    def take_drawing(self, values: Values) -> Updates:
        """Try what is drawn."""
        return {self.panels.steer.sample: self.panels.steer.boxes.drawing(values)}

    def take_image(self, values: Values) -> Updates:
        """Try an uploaded image."""
        return {self.panels.steer.sample: self.panels.steer.boxes.image(values)}

    def take_written(self, values: Values) -> Updates:
        """Try the image with the written names, or the written text."""
        steer = self.panels.steer
        sample = steer.boxes.image(values) or steer.boxes.written(values, values[steer.sample])
        return {steer.sample: sample}
