"""How the tab's events run: steps that read the state and update a panel, one after the other behind an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.ui.handlers import Updates, Values, handle
from sftm_app.ui.inspect.panels import Panels
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import Selection, parse_selection

# "multiple": by default Gradio drops an event, and all that follows it, while the one before is still running; the page
# would go on showing what a person has left. Slow steps ask whether they are still the latest instead.
# Without the queue Gradio answers sooner, but shows no message: QUICK is for what has nothing to say, or says it again
# in a later step.
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple"}
SLOW: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}


@dataclass(frozen=True)
class Step:
    """A function of the state, and the components that it may update."""

    show: Callable[[InspectState], Updates]
    outputs: set[Any]
    quick: bool = False


def _always(state: InspectState) -> bool:
    return True


@dataclass(frozen=True)
class SlowStep:
    """The same for what takes long: it yields updates, and is given up once a page asks for another of this kind.

    applies: whether there is anything to do for a state.
    """

    show: Callable[[InspectState], Iterator[Updates]]
    outputs: set[Any]
    kind: str
    applies: Callable[[InspectState], bool] = _always


class Wiring:
    """Connects steps to events. Nothing runs while there is no layer to look at."""

    def __init__(self, studio: Studio, panels: Panels) -> None:
        self._studio, self._panels = studio, panels

    def state(self, values: Values) -> InspectState | None:
        """What is chosen; None while there is nothing to look at."""
        state = self._panels.read(values)
        if not state.layer or not self._studio.usable(state.ws):
            return None
        # An event that was sent just before other models were loaded names a layer of the old ones.
        return state if state.layer in self._studio.preflight(state.ws).base.tensors else None

    def on(self, event: Callable[..., Any], step: Step, **options: Any) -> Any:
        """Run a step on an event of a component."""
        return event(self._handler(step), self._panels.inputs, step.outputs, **{**QUICK, **options})

    def on_slow(self, event: Callable[..., Any], step: SlowStep) -> Any:
        """Run a slow step on an event of a component."""
        return event(self._slow_handler(step), self._panels.inputs, step.outputs, **SLOW)

    def on_click(
        self,
        event: Callable[..., Any],
        show: Callable[[InspectState, Selection], Updates],
        outputs: set[Any],
        **options: Any,
    ) -> Any:
        """Run a function of the state and of the point that was clicked."""

        def click(values: Values, event_data: gr.EventData) -> Updates:
            state, selection = self.state(values), parse_selection(event_data)
            return {} if state is None or selection is None else show(state, selection)

        return event(handle(click), self._panels.inputs, outputs, **{**QUICK, **options})

    def after(self, event: Any, *steps: Step | SlowStep) -> Any:
        """Run steps behind an event, one after the other; the last one's event."""
        for step in steps:
            if isinstance(step, SlowStep):
                event = event.then(self._slow_handler(step), self._panels.inputs, step.outputs, **SLOW)
            else:
                options = QUICK if step.quick else SLOW
                event = event.then(self._handler(step), self._panels.inputs, step.outputs, **options)
        return event

    def _handler(self, step: Step) -> Callable[..., Any]:
        def call(values: Values) -> Updates:
            state = self.state(values)
            return {} if state is None else step.show(state)

        return handle(call)

    def _slow_handler(self, step: SlowStep) -> Callable[..., Any]:
        def stream(values: Values, request: gr.Request) -> Iterator[Updates]:
            state = self.state(values)
            if state is None or not step.applies(state):
                return
            is_latest = self._studio.latest_request(f"{request.session_hash} {step.kind}")
            for updates in step.show(state):
                if not is_latest():
                    return
                yield updates

        return handle(stream)
