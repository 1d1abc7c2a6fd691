"""What-if: the settings of a merge, and what they would do to the layer that is looked at, while a slider moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.methods import METHODS
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.plots.preservation import prediction_bars
from sftm_app.plots.style import MUTED, method_colour
from sftm_app.ui.inspect.layer_view import LayerView, look, own_weights, read_settings
from sftm_app.ui.params_form import ParamsForm
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import task_colour
from sftm_app.ui.view import Pinned, settings_title
from sftm_app.ui.widgets import PlotlyView, Sliders, slider_rows
from sftm_app.ui.widgets.html import Kind, Safe, hint, notice, stack, stat, stats
from sftm_app.ui.workspace import Workspace

# A readout error from which on a task is as badly off as if nothing had been added.
LOST = 1.0
NOTHING_LOST = 0.005
OUTWEIGHED = (
    "What the tasks write on top of each other outweighs what each of them wrote: the readout error vanishes, the "
    "mapping error grows. Which of the two counts for a model only trying it tells; a lower scaling or the variant "
    "mapping trades one for the other."
)
AVERAGED = "Every task reads all inputs of this layer, so that at full rank the variant mapping is the plain average."


@dataclass(frozen=True)
class WhatIfControls:
    """The components of the panel. inputs: what describes the settings, in the order that `read` expects."""

    form: ParamsForm
    weights: Sliders
    bars: PlotlyView
    figures: gr.HTML
    use: gr.Button

    @property
    def inputs(self) -> list[Any]:
        return [self.weights, *self.form.inputs]

    @property
    def views(self) -> list[Any]:
        """What follows the sliders: the outputs of `predicted`."""
        return [self.bars, self.figures]

    def read(self, ws: Workspace, values: tuple[Any, ...]) -> MergeSettings:
        """The settings. Raises RecipeError: a control holds something that is not understood."""
        return read_settings(ws, values[0], self.form.read(tuple(values[1:])))

    def write(self, ws: Workspace, settings: MergeSettings | None) -> list[Any]:
        """Updates for `inputs` that show these settings; None: the defaults, with the workspace's weights."""
        shown = settings or merge_settings("sftm", {}, own_weights(ws))
        values = {name: getattr(shown.params, name) for name in vars(METHODS[shown.method].params())}
        return [weight_rows(ws, shown), *self.form.write(shown.method, values)]

    @property
    def rank(self) -> tuple[gr.Radio, gr.Slider]:
        """The kind of SFTM's rank, and its amount, whose scale follows the kind."""
        by, amount = self.form.components("sftm", "rank")
        return by, amount

    def on_input(self, live: Callable[..., Any], settled: Callable[..., Any]) -> None:
        """live is given the event of each control that fires while it moves, settled the one that fires after it.

        Not those of the rank's kind: its amount has to follow first.
        """
        for component in self.inputs:
            if component is self.rank[0]:
                continue
            slides = isinstance(component, gr.Slider | Sliders)
            if slides:
                live(component.input)
            settled(component.release if slides else component.input)


def weight_rows(ws: Workspace, settings: MergeSettings) -> str:
    """The value of the weight sliders."""
    return slider_rows(ws.task_names, [task_colour(i) for i in range(len(ws.tasks))], settings.weights)


def build_views() -> tuple[PlotlyView, gr.HTML]:
    """The bars and the figures, which follow the controls."""
    bars = PlotlyView(
        label="Predicted preservation per task", filename="what-if", min_plot_height=280, elem_id="what-if-bars"
    )
    return bars, gr.HTML(apply_default_css=False, elem_id="what-if-figures")


def build_what_if(bars: PlotlyView, figures: gr.HTML) -> WhatIfControls:
    """Lay the controls out."""
    form = ParamsForm(live=True, prefix="what-if-")
    with gr.Accordion("Task weights", open=False):
        weights = Sliders(label="Weight of", minimum=0.05, maximum=2.0, step=0.05, elem_id="what-if-weights")
    use = gr.Button("Use for the merge", variant="primary", elem_id="use-for-merge")
    return WhatIfControls(form, weights, bars, figures, use)


def predicted(
    studio: Studio, ws: Workspace, name: str | None, settings: MergeSettings, pinned: Pinned | None
) -> tuple[Any, Safe]:
    """The bars and the figures of one layer under these settings, beside the plain average and what is pinned."""
    looked = look(studio, ws, name)
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    made = what_if.predict(settings)
    return bars_figure(studio, ws, looked, what_if, made, pinned), figures_html(looked, what_if, made)


def bars_figure(
    studio: Studio, ws: Workspace, looked: LayerView, what_if: WhatIf, made: Prediction, pinned: Pinned | None
) -> Any:
    """Readout and mapping error per task."""
    title, method = settings_title(made.settings), made.settings.method
    series = [(title, method_colour(method), made.readout_errors, made.mapping_errors)]
    if method != "average":
        average = what_if.predict(merge_settings("average", {}, made.settings.weights))
        colour = method_colour("average")
        series.append((METHODS["average"].title, colour, average.readout_errors, average.mapping_errors))
    # Another layer's errors beside these would be read as this layer's.
    if pinned is not None and pinned.settings is not None and pinned.layer == looked.layer.name:
        kept = what_if.predict(pinned.settings)
        name = f"pinned: {settings_title(pinned.settings)}"
        series.append((name, MUTED, kept.readout_errors, kept.mapping_errors))
    return prediction_bars(looked.members, series, height=280)


def figures_html(looked: LayerView, what_if: WhatIf, made: Prediction) -> Safe:
    """The figures of a prediction, and what is wrong with it in a sentence."""
    members = looked.members
    worst = max(range(len(members)), key=made.readout_errors.__getitem__)
    error = made.readout_errors[worst]
    tone: Kind | None = "error" if error >= LOST else None
    base = what_if.made.base_norm
    kept = error < NOTHING_LOST
    shown = [
        stat("Worst readout error", *(("< 0.01", "all tasks") if kept else (f"{error:.2f}", members[worst])), tone),
        stat("Size of the change", f"{made.norm / base:.1%}" if base else "no base", "beside the base's weight"),
        stat("Features used", sum(made.ranks), f"of {sum(f.rank for f in what_if.made.factors)} in all tasks"),
    ]
    if made.condition is not None:
        shown.append(stat("Condition", f"{made.condition:.3g}", "of the system; 1 is perfectly separate"))
    notes = [
        f"{members[c.first]} and {members[c.second]} oppose each other here (cosine {c.cosine:.2f}): the merged weight "
        "cannot do what both ask for."
        for c in made.conflicts
    ]
    said = notice("warning", "These tasks cannot all have what they ask for", items=notes) if notes else ""
    dropped = (
        hint(f"The tasks do not determine {made.n_dropped} directions: the shortest of all solutions is taken.")
        if made.n_dropped
        else ""
    )
    variant = getattr(made.settings.params, "variant", "")
    mean = sum(made.mapping_errors) / len(members)
    read = hint(AVERAGED) if variant == "mapping" and made.condition is None else ""
    read = notice("info", "Mapping error above 1", OUTWEIGHED) if variant == "readout" and mean > LOST else read
    return stack(stats(shown), said, read, dropped)


def lost_help() -> Safe:
    """How the bars are read."""
    return hint(
        "Readout error: how far the merged change is from each feature's own gain. Mapping error: the same for whole "
        "outputs, with what other tasks write on top. 0 keeps everything, 1 is as far off as adding nothing."
    )
