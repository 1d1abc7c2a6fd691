"""What-if: the settings of a merge, and what they would do to the layer, updated while a slider moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.inspection.reasons import undetermined
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.methods import METHODS
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.plots.preservation import ErrorSeries, prediction_bars
from sftm_app.plots.style import MUTED, method_colour, task_colour
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.handlers import Updates, when_set
from sftm_app.ui.inspect.layer_view import LayerView, default_settings
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned
from sftm_app.ui.widgets import PlotlyView, Sliders, slider_rows
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, Kind, details, hint, notice, stack, stat, stats
from sftm_app.ui.wording import BASELINE, ERRORS_HELP, settings_title
from sftm_app.ui.workspace import Workspace

# From this readout error on, a task is as badly off as if nothing had been added.
LOST = 1.0
NOTHING_LOST = 0.005
OUTWEIGHED = (
    "On a task's inputs, the other tasks write more than the task itself. A lower scaling reduces this. Whether it "
    "harms the model shows only when you try it."
)


class WhatIfPanel:
    """Predicted errors and figures; the controls are laid out by `lay_out_controls`."""

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self._workspace = studio, workspace
        self.bars = PlotlyView(
            label="Predicted preservation per task", filename="what-if", min_plot_height=280, elem_id="what-if-bars"
        )
        self.figures = block(elem_id="what-if-figures")
        block(hint(ERRORS_HELP))
        self.views: set[Any] = {self.bars, self.figures}

    def lay_out_controls(self) -> None:
        """Method, parameters and weights, and the button that hands them on."""
        section("What if", "Try settings of a merge. The plots show how much of each task this layer would keep.")
        instead = f"{METHODS[BASELINE].title} is shown instead."
        self.form = ParamsForm(self._workspace, prefix="what-if-", instead=instead)
        with gr.Accordion("Task weights", open=False):
            self.weights = Sliders(label="Weight of", minimum=-2.0, maximum=2.0, step=0.05, elem_id="what-if-weights")
        self.use = gr.Button("Use for the merge", variant="primary", elem_id="use-for-merge")
        self.controls: set[Any] = {self.weights, *self.form.inputs}
        self.written: set[Any] = {self.weights, *self.form.outputs}
        self.amounts: set[Any] = {slider.amount for slider in self.form.rank_sliders}

    def open(self, ws: Workspace, settings: MergeSettings | None) -> Updates:
        """Show these settings; None: the default ones, with the workspace's weights."""
        shown = settings or default_settings(ws)
        colours = [task_colour(i) for i in range(len(ws.tasks))]
        return {self.weights: slider_rows(ws.task_names, colours, shown.weights), **self.form.write(shown)}

    def scale_counts(self, state: InspectState) -> Updates:
        """A slider that counts features ends where the layer's features do."""
        return self.form.scale_counts(state.settings, min(state.look(self.studio).layer.shape))

    def on_input(self, live: Callable[..., Any], settled: Callable[..., Any]) -> None:
        """Wire the controls: `live` to the events while one moves, `settled` to the one event after it.

        One wire for all of them: the page that is sent grows with the number of wires times the number of controls.
        The method and the kinds of ranks are left out, because other controls have to follow them first.
        """
        others = sorted(self.controls - self.form.followed_first, key=lambda component: component._id)
        live(partial(gr.on, [one.input for one in others if isinstance(one, gr.Slider | Sliders)]))
        settled(partial(gr.on, [when_set(one) for one in others]))

    def show(self, state: InspectState) -> Updates:
        """The predicted errors and figures of the layer: what follows a slider while it moves."""
        try:
            looked = state.look(self.studio)
            what_if = looked.what_if
            made = what_if.predict(state.settings)
            bars = bars_figure(looked, what_if, made, state.pinned)
            return {self.bars: bars, self.figures: figures_html(looked, what_if, made)}
        except SFTMError as error:
            title = "Nothing can be predicted for these settings"
            return {self.bars: None, self.figures: notice("warning", title, error)}


def bars_figure(looked: LayerView, what_if: WhatIf, made: Prediction, pinned: Pinned | None) -> Any:
    """Readout and mapping error per task, next to the baseline and the pinned view."""
    settings = made.settings
    series = [error_series(settings_title(settings), method_colour(settings.method), made)]
    baseline = merge_settings(BASELINE, {}, settings.weights)
    if settings != baseline:
        series.append(error_series(settings_title(baseline), method_colour(BASELINE), what_if.predict(baseline)))
    # The errors of another layer would be read as this layer's.
    if pinned is not None and pinned.settings is not None and pinned.layer == looked.layer.name:
        kept = what_if.predict(pinned.settings)
        series.append(error_series(f"pinned: {settings_title(pinned.settings)}", MUTED, kept))
    return prediction_bars(looked.members, series, height=280)


def error_series(title: str, colour: str, made: Prediction) -> ErrorSeries:
    """The predicted errors as bars."""
    return ErrorSeries(title, colour, made.readout_errors, made.mapping_errors)


def figures_html(looked: LayerView, what_if: WhatIf, made: Prediction) -> Html:
    """The figures of a prediction, and what is wrong with it in a sentence."""
    members = looked.members
    worst = max(range(len(members)), key=made.readout_errors.__getitem__)
    error = made.readout_errors[worst]
    tone: Kind | None = "error" if error >= LOST else None
    base = what_if.made.base_norm
    shown = [
        stat("Worst readout error", "< 0.01", "all tasks")
        if error < NOTHING_LOST
        else stat("Worst readout error", f"{error:.2f}", members[worst], tone),
        stat("Norm of the change", f"{made.norm / base:.1%}" if base else "–", "of the norm of the base's weight"),
    ]
    if made.coefficients is not None or made.condition is not None:
        n_features = sum(factors.rank for factors in what_if.made.factors)
        shown.append(stat("Features used", sum(made.ranks), f"of {n_features} in all tasks"))
    if made.condition is not None:
        shown.append(stat("Condition", f"{made.condition:.3g}", "of the linear system; 1 means no overlap"))
    notes: list[object] = []
    if made.conflicts:
        opposed = [
            f"{members[c.first]} and {members[c.second]} oppose each other here (cosine {c.cosine:.2f}), so no merge "
            "can keep both."
            for c in made.conflicts
        ]
        notes.append(notice("warning", "Some tasks oppose each other", items=opposed))
    if sum(made.mapping_errors) > LOST * len(members):
        notes.append(details("What a mapping error above 1 means", hint(OUTWEIGHED)))
    if made.n_dropped:
        notes.append(hint(undetermined(made.n_dropped)))
    return stack(stats(shown), *notes)
