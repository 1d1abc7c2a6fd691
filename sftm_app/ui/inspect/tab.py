"""Inspect: the map, a layer, where two tasks meet, a feature, what-if and two views side by side; all linked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from sftm_app.ui.handlers import say_info, sentences
from sftm_app.ui.inspect import meaning_panel
from sftm_app.ui.inspect import showing as show
from sftm_app.ui.inspect.clicks import cell_of, feature_behind, link_of, name_of, place_of
from sftm_app.ui.inspect.layout import lay_out
from sftm_app.ui.inspect.state import InspectState, inputs_of, read_state
from sftm_app.ui.inspect.wiring import QUICK, SLOW, Wiring, skipped
from sftm_app.ui.rank_slider import amount_update
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.evaluate_inputs import image_sample, text_sample
from sftm_app.ui.view import View
from sftm_app.ui.widgets import AddressBar, decode_drawing
from sftm_app.ui.workspace import Workspace

TO_COMPARISON = "() => { document.querySelector('#compare')?.scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"


@dataclass(frozen=True)
class InspectTab:
    """What other parts of the page need. use: the button that hands the settings on; `read` makes them of `inputs`.

    then_address: puts the step that keeps the address true behind an event.
    """

    use: gr.Button
    inputs: list[Any]
    read: Callable[[tuple[Any, ...]], InspectState]
    then_address: Callable[[Any], Any]


def build(studio: Studio, workspace: gr.State, opened: gr.State, tab: gr.State, address: AddressBar) -> InspectTab:
    """Lay out the tab and wire it. opened: the View that the page was opened with; tab: the name of the tab on show."""
    made = lay_out()
    pinned, sample, fitted = gr.State(None), gr.State(None), gr.State("")
    wiring = Wiring(studio, made, inputs_of(made, workspace, pinned), sample, fitted, tab, address)
    _wire_workspace(wiring, workspace, opened, pinned)
    _wire_map(wiring)
    _wire_pairs(wiring)
    _wire_feature(wiring)
    _wire_what_if(wiring)
    _wire_pin(wiring, pinned)
    _wire_sample(wiring)
    return InspectTab(made.what_if.use, wiring.inputs, lambda values: read_state(made, values), wiring.then_address)


def _wire_workspace(wiring: Wiring, workspace: gr.State, opened: gr.State, pinned: gr.State) -> None:
    studio, made = wiring.studio, wiring.made
    controls = [made.measure, made.about, made.layer, made.first, made.second, made.task, made.number]
    settings = made.what_if.inputs

    def open_workspace(ws: Workspace, asked: View | None) -> tuple[Any, ...]:
        usable, view = studio.usable(ws), asked or View()
        shown = (gr.update(visible=not usable), gr.update(visible=usable))
        if not usable:
            return *shown, *skipped([*controls, *settings]), None, None, None, ""
        updates = show.show_controls(studio, ws, view)
        return *shown, *updates, *made.what_if.write(ws, view.settings), view.pinned, None, None, ""

    event = workspace.change(
        sentences(open_workspace),
        [workspace, opened],
        # The address's view counts once; a sample belongs to the models it was picked for.
        [made.empty, made.body, *controls, *settings, pinned, opened, wiring.sample, wiring.fitted],
        **SLOW,
    )
    event = wiring.after(event, wiring.layer)
    # Beside what follows the layer, not before it: the map takes as long as the model is large.
    wiring.then_map(event)
    wiring.layer_changed(event)


def _wire_map(wiring: Wiring) -> None:
    studio, made = wiring.studio, wiring.made

    def click(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        chosen, name = wiring.chosen(values), name_of(event)
        if chosen is None or name is None:
            return skipped([made.layer, made.number, *wiring.layer.outputs])
        return name, 1, *show.show_layer(studio, replace(chosen, layer=name, number=1))

    # The map's frame follows the click in the browser at once; a map that is still filling has to learn of it too.
    outputs = [made.layer, made.number, *wiring.layer.outputs]
    event = made.layers_map.select(sentences(click), wiring.inputs, outputs, **QUICK)
    wiring.then_map(event)
    wiring.layer_changed(event)
    event = wiring.after(made.layer.input(lambda: 1, None, made.number, **QUICK), wiring.layer)
    wiring.then_map(event)
    wiring.layer_changed(event)
    for choice in (made.measure, made.about):
        drawn = choice.input(sentences(wiring.map_handler()), wiring.inputs, wiring.map_views, **SLOW)
        wiring.then_address(drawn)


def _wire_pairs(wiring: Wiring) -> None:
    studio, made, pair = wiring.studio, wiring.made, wiring.pair

    def click(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        chosen, cell = wiring.chosen(values), cell_of(event)
        members = chosen.look(studio).members if chosen else []
        if chosen is None or cell is None or max(cell) >= len(members):
            return skipped(pair.outputs)
        if cell[0] == cell[1]:
            say_info("A task overlaps wholly with itself. Click a cell beside the diagonal to see two tasks.")
            return skipped(pair.outputs)
        return show.show_pair(studio, replace(chosen, first=members[cell[0]], second=members[cell[1]]))

    for overview in (made.tasks_read, made.tasks_write, made.tasks_both):
        wiring.then_address(overview.select(sentences(click), wiring.inputs, pair.outputs, **SLOW))
    for choice in (made.first.input, made.second.input, made.top.release):
        wiring.then_address(wiring.on(choice, pair, queue=True, trigger_mode="always_last"))


def _wire_feature(wiring: Wiring) -> None:
    studio, made, feature = wiring.studio, wiring.made, wiring.feature
    outputs = [made.task, made.number, *feature.outputs]

    def opening(chosen: InspectState, task: str, number: int) -> tuple[Any, ...]:
        return task, number, *show.show_feature(studio, replace(chosen, task=task, number=number))

    def click_spectrum(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        chosen, place = wiring.chosen(values), place_of(event)
        members = chosen.look(studio).members if chosen else []
        if chosen is None or place is None or place[0] >= len(members):
            return skipped(outputs)
        return opening(chosen, members[place[0]], place[1] + 1)

    def click_pair(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        chosen, cell = wiring.chosen(values), cell_of(event)
        return skipped(outputs) if chosen is None or cell is None else opening(chosen, chosen.first, cell[0])

    def click_reason(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        chosen = wiring.chosen(values)
        near = feature_behind(event, studio, chosen) if chosen else None
        return skipped(outputs) if chosen is None or near is None else opening(chosen, near.task, near.feature + 1)

    def follow(event: gr.EventData, *values: Any) -> tuple[Any, ...]:
        """A warning's or a neighbour's link."""
        chosen = wiring.chosen(values)
        link = link_of(event, chosen.look(studio).members) if chosen else None
        if chosen is None or link is None:
            return skipped([*outputs, made.first, made.second])
        if link.feature is not None:
            return *opening(chosen, link.tasks[0], link.feature + 1), gr.skip(), gr.skip()
        return *skipped(outputs), *link.tasks

    clicks = [(made.spectrum, click_spectrum), (made.reasons, click_reason)]
    clicks += [(heatmap, click_pair) for heatmap in (made.pair_read, made.pair_write, made.pair_both)]
    for plot, handler in clicks:
        wiring.feature_changed(plot.select(sentences(handler), wiring.inputs, outputs, **QUICK))
    for links in (made.warnings, made.neighbours):
        followed = links.select(sentences(follow), wiring.inputs, [*outputs, made.first, made.second], **QUICK)
        wiring.feature_changed(wiring.after(followed, wiring.pair))
    for event in (made.task.input, made.number.input, made.number.submit):
        wiring.feature_changed(wiring.on(event, feature, trigger_mode="always_last"))
    wiring.then_meaning(made.where.submit(lambda: None, None, None, **QUICK))


def _wire_what_if(wiring: Wiring) -> None:
    by, amount = wiring.made.what_if.rank

    def scale(kind: str, *values: Any) -> Any:
        chosen = wiring.chosen(values)
        return amount_update(kind, most=min(chosen.look(wiring.studio).layer.shape) if chosen else None)

    wiring.made.what_if.on_input(
        live=lambda event: wiring.on(event, wiring.bars, trigger_mode="always_last"),
        settled=lambda event: wiring.settings_changed(wiring.on(event, wiring.bars)),
    )
    scaled = by.input(sentences(scale), [by, *wiring.inputs], amount, **QUICK)
    wiring.settings_changed(wiring.after(scaled, wiring.bars))


def _wire_pin(wiring: Wiring, pinned: gr.State) -> None:
    def pin(*values: Any) -> Any:
        chosen = wiring.chosen(values)
        return gr.skip() if chosen is None else chosen.now

    for button, handler in ((wiring.made.pin, pin), (wiring.made.unpin, lambda *values: None)):
        event = button.click(sentences(handler), wiring.inputs, pinned, **QUICK)
        event = wiring.then_address(wiring.after(event, wiring.comparison, wiring.bars))
        # Far below what was clicked.
        event.then(None, None, None, js=TO_COMPARISON)


def _wire_sample(wiring: Wiring) -> None:
    studio, boxes, sample = wiring.studio, wiring.made.inputs, wiring.sample
    outputs = [sample, *boxes.all]

    def pick(*values: Any) -> tuple[Any, ...]:
        chosen = wiring.chosen(values)
        return skipped(outputs) if chosen is None else show.pick_sample(studio, chosen)

    def drawn(drawing: Any) -> Any:
        return meaning_panel.drawn_sample(decode_drawing(drawing))

    def given(image: Any, names: str) -> Any:
        return None if image is None else image_sample(image, names)

    def written(before: Any, text: str, choices: str, chat: bool, image: Any) -> Any:
        return given(image, choices) if image is not None else text_sample(text, choices, chat, before)

    asked = [sample, boxes.text, boxes.choices, boxes.chat, boxes.picture]
    wiring.then_sample(boxes.pick.click(sentences(pick), wiring.inputs, outputs, **SLOW))
    wiring.then_sample(boxes.pad.input(sentences(drawn), boxes.pad, sample, **QUICK))
    wiring.then_sample(boxes.picture.input(sentences(given), [boxes.picture, boxes.choices], sample, **SLOW))
    wiring.then_sample(boxes.ask.click(sentences(written), asked, sample, **SLOW))
    wiring.then_sample(wiring.made.steer.factor.release(lambda: None, None, None, **QUICK))
