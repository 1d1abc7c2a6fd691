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
from sftm_app.ui.inspect.layout import Components
from sftm_app.ui.inspect.state import InspectState, read_state
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.evaluate_inputs import for_task
from sftm_app.ui.widgets import AddressBar

# "multiple": by default Gradio drops an event, and all that follows it, while the one before is still under way: the
# page would go on showing what a person has left. What is slow asks `latest` whether it is still wanted.
# Without the queue Gradio answers sooner, but shows no message: QUICK is for what has nothing to say, or says it again
# in a step behind it.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple"}
SLOW: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}


@dataclass(frozen=True)
class Step:
    """A function (studio, chosen) and what it redraws, in the order of what it returns."""

    function: Callable[[Studio, InspectState], Any]
    outputs: list[Any]


@dataclass(frozen=True)
class Wiring:
    """The tab's components and the steps between them. inputs: what `read_state` reads.

    sample: what is tried; fitted: the name of the task that the inputs for it suit.
    """

    studio: Studio
    made: Components
    inputs: list[Any]
    sample: gr.State
    fitted: gr.State
    tab: gr.State
    address: AddressBar

    # Steps.

    @property
    def layer(self) -> Step:
        """Title and spectra."""
        made = self.made
        _, amount = made.what_if.rank
        outputs = [made.title, made.spectrum, made.clusters, made.first, made.second, made.task, amount]
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
        pair = [made.first, made.second, made.pair_read, made.pair_write, made.pair_both, made.angles]
        return Step(show.show_pair, [*tasks, *pair])

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

    def chosen(self, values: tuple[Any, ...]) -> InspectState | None:
        """What is chosen; None while there is nothing to look at."""
        chosen = read_state(self.made, values)
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
            event = event.then(self.call(step), self.inputs, step.outputs, **SLOW)
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

    def latest(self, request: gr.Request, what: str) -> Callable[[], bool]:
        """Whether nothing of this kind was asked for on the same page since."""
        session = f"{request.session_hash} {what}"
        number = self.studio.newer_draw(session)
        return lambda: self.studio.is_latest_draw(session, number)

    def map_handler(self, only_of_method: bool = False) -> Callable[..., Iterator[Any]]:
        """The map while it fills; given up when another drawing of the same page began meanwhile."""

        def draw(request: gr.Request, *values: Any) -> Iterator[Any]:
            chosen = self.chosen(values)
            if chosen is None or (only_of_method and not MEASURES[map_panel.known_measure(chosen.measure)].of_method):
                return
            wanted = self.latest(request, "map")
            for drawn in show.show_map(self.studio, chosen):
                if not wanted():
                    return
                yield drawn

        return draw

    def then_meaning(self, event: Any) -> Any:
        """Tokens and samples behind an event: slow, and dropped when they are of a feature left meanwhile."""

        def explain(request: gr.Request, *values: Any) -> tuple[Any, Any]:
            wanted, chosen = self.latest(request, "meaning"), self.chosen(values)
            found = show.show_meaning(self.studio, chosen) if chosen else ("", "")
            return found if wanted() else (gr.skip(), gr.skip())

        return event.then(sentences(explain), self.inputs, [self.made.tokens, self.made.excited], **SLOW)

    def then_fit(self, event: Any) -> Any:
        """Suit the inputs to the feature's task behind an event. A sample of another task is put away."""
        outputs = [self.sample, self.fitted, *self.made.inputs.all]

        def fit(fitted: str, *values: Any) -> tuple[Any, ...]:
            chosen = self.chosen(values)
            if chosen is None or chosen.task == fitted:
                return skipped(outputs)
            return None, chosen.task, *for_task(self.studio, chosen.ws, chosen.task)

        return event.then(sentences(fit), [self.fitted, *self.inputs], outputs, **QUICK)

    def then_sample(self, event: Any, asked: bool = True) -> Any:
        """Try the sample behind an event. asked: the person did; else a large model is not merged anew for it."""
        outputs = [*self.made.steer.views, self.made.own_excited]

        def try_it(request: gr.Request, shown: Samples | None, factor: float, *values: Any) -> tuple[Any, ...]:
            wanted, chosen = self.latest(request, "sample"), self.chosen(values)
            if chosen is None:
                return skipped(outputs)
            found = show.show_sample(self.studio, chosen, factor, shown, asked)
            return found if wanted() else skipped(outputs)

        return event.then(sentences(try_it), [self.sample, self.made.steer.factor, *self.inputs], outputs, **SLOW)

    def feature_changed(self, event: Any) -> None:
        """What follows a feature that is shown already, from quick to slow."""
        event = self.then_address(self.then_fit(self.after(event, self.settled)))
        self.then_sample(self.then_meaning(event))

    def layer_changed(self, event: Any) -> None:
        """What follows a layer that is shown already."""
        event = self.after(event, self.bars, self.settled, self.pair, self.feature, self.comparison)
        self.then_sample(self.then_meaning(self.then_address(self.then_fit(event))))

    def settings_changed(self, event: Any) -> None:
        """What follows settings whose bars are shown already."""
        event = self.then_address(self.after(event, self.settled, self.feature, self.comparison))
        self.then_sample(self.then_map(event, only_of_method=True), asked=False)


def skipped(outputs: list[Any]) -> Any:
    """What leaves these outputs as they are."""
    return gr.skip() if len(outputs) == 1 else tuple(gr.skip() for _ in outputs)
