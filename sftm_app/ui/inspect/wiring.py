"""What follows what: the steps that redraw parts of the tab, and the chains they run in behind an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.evaluation.family import Samples
from sftm_app.inspection.measures import MEASURES
from sftm_app.ui.address import address_of
from sftm_app.ui.handlers import sentences
from sftm_app.ui.inspect import map_panel
from sftm_app.ui.inspect import showing as show
from sftm_app.ui.inspect.chosen import Chosen, read_chosen
from sftm_app.ui.inspect.layout import Components
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import AddressBar

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
SLOW: dict[str, Any] = {"show_progress": "hidden"}


@dataclass(frozen=True)
class Step:
    """A function (studio, chosen) and what it redraws, in the order of what it returns."""

    function: Callable[[Studio, Chosen], Any]
    outputs: list[Any]


@dataclass(frozen=True)
class Wiring:
    """The tab's components and the steps between them. inputs: what `read_chosen` reads; sample: what is tried."""

    studio: Studio
    made: Components
    inputs: list[Any]
    sample: gr.State
    tab: gr.State
    address: AddressBar

    # Steps.

    @property
    def layer(self) -> Step:
        """Title and spectra."""
        made = self.made
        outputs = [made.title, made.spectrum, made.clusters, made.first, made.second, made.task]
        return Step(show.show_layer, outputs)

    @property
    def bars(self) -> Step:
        """What follows a slider while it moves."""
        return Step(show.show_prediction, self.made.what_if.views)

    @property
    def settled(self) -> Step:
        """What follows it when it has stopped."""
        return Step(show.show_settled, [self.made.spectrum, self.made.warnings])

    @property
    def pair(self) -> Step:
        """Where tasks meet."""
        made = self.made
        tasks = [made.tasks_read, made.tasks_write, made.tasks_both]
        return Step(show.show_pair, [*tasks, made.pair_read, made.pair_write, made.pair_both, made.angles])

    @property
    def feature(self) -> Step:
        """Figures and neighbours of a feature."""
        return Step(show.show_feature, [self.made.feature, self.made.reasons, self.made.neighbours])

    @property
    def comparison(self) -> Step:
        """The pinned view and the present one."""
        made = self.made
        outputs = [made.compare, made.unpin, made.compare_note, *made.pinned_side.views, *made.now_side.views]
        return Step(show.show_comparison, outputs)

    # What they run on.

    def chosen(self, values: tuple[Any, ...]) -> Chosen | None:
        """What is chosen; None while there is nothing to look at."""
        chosen = read_chosen(self.made, values)
        return chosen if chosen.layer and self.studio.usable(chosen.ws) else None

    def call(self, step: Step) -> Callable[..., Any]:
        """The step as a handler, skipped while there is nothing to look at."""

        def handler(*values: Any) -> Any:
            chosen = self.chosen(values)
            return skipped(step.outputs) if chosen is None else step.function(self.studio, chosen)

        return sentences(handler)

    # Chains.

    def on(self, event: Callable[..., Any], step: Step, **options: Any) -> Any:
        """Run a step on an event of a component."""
        return event(self.call(step), self.inputs, step.outputs, **{**QUICK, **options})

    def after(self, event: Any, *steps: Step) -> Any:
        """Run steps behind an event, one after the other; the last one's event."""
        for step in steps:
            event = event.then(self.call(step), self.inputs, step.outputs, **QUICK)
        return event

    def then_address(self, event: Any) -> Any:
        """Keep the address true behind an event."""

        def to_address(name: str, *values: Any) -> Any:
            chosen = self.chosen(values)
            return gr.skip() if chosen is None else address_of(self.studio, chosen.ws, chosen.view(name))

        return event.then(sentences(to_address), [self.tab, *self.inputs], self.address, **QUICK)

    def then_map(self, event: Any, only_of_method: bool = False) -> Any:
        """Draw the map behind an event. only_of_method: where its colours depend on the settings."""
        return event.then(sentences(self.map_handler(only_of_method)), self.inputs, self.map_views, **SLOW)

    @property
    def map_views(self) -> list[Any]:
        """The outputs of the map's handler."""
        return [self.made.layers_map, self.made.measure_help]

    def map_handler(self, only_of_method: bool = False) -> Callable[..., Iterator[Any]]:
        """The map while it fills; given up when another drawing of the same page began meanwhile."""

        def draw(request: gr.Request, *values: Any) -> Iterator[Any]:
            chosen = self.chosen(values)
            if chosen is None or (only_of_method and not MEASURES[map_panel.known_measure(chosen.measure)].of_method):
                return
            session = f"{request.session_hash} map"
            number = self.studio.newer_draw(session)
            for drawn in show.show_map(self.studio, chosen):
                if not self.studio.is_latest_draw(session, number):
                    return
                yield drawn

        return draw

    def then_meaning(self, event: Any) -> Any:
        """Tokens and samples behind an event: slow, and dropped when they are of a feature left meanwhile."""

        def explain(request: gr.Request, *values: Any) -> tuple[Any, Any]:
            session = f"{request.session_hash} meaning"
            number = self.studio.newer_draw(session)
            chosen = self.chosen(values)
            found = show.show_meaning(self.studio, chosen) if chosen else ("", "")
            return found if self.studio.is_latest_draw(session, number) else (gr.skip(), gr.skip())

        return event.then(sentences(explain), self.inputs, [self.made.tokens, self.made.excited], **SLOW)

    def then_sample(self, event: Any) -> Any:
        """Try the sample behind an event; nothing while there is none."""
        outputs = [*self.made.steer.views, self.made.own_excited]

        def try_it(shown: Samples | None, factor: float, *values: Any) -> tuple[Any, ...]:
            chosen = self.chosen(values)
            if chosen is None or shown is None:
                return skipped(outputs)
            return show.show_sample(self.studio, chosen, factor, shown)

        return event.then(sentences(try_it), [self.sample, self.made.steer.factor, *self.inputs], outputs, **SLOW)

    def feature_changed(self, event: Any) -> None:
        """What follows a feature that is shown already, from quick to slow."""
        self.then_sample(self.then_meaning(self.then_address(self.after(event, self.settled))))

    def layer_changed(self, event: Any) -> None:
        """What follows a layer that is shown already."""
        event = self.after(event, self.bars, self.settled, self.pair, self.feature, self.comparison)
        self.then_sample(self.then_meaning(self.then_address(event)))

    def settings_changed(self, event: Any) -> None:
        """What follows settings whose bars are shown already."""
        event = self.then_address(self.after(event, self.settled, self.feature, self.comparison))
        self.then_sample(self.then_map(event, only_of_method=True))


def skipped(outputs: list[Any]) -> Any:
    """What leaves these outputs as they are."""
    return gr.skip() if len(outputs) == 1 else tuple(gr.skip() for _ in outputs)
