"""Pick the scaling without labels: where the merge agrees most with each task's own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from sftm_app.errors import RecipeError, SFTMError
from sftm_app.evaluation.samples import Samples
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.tuning.inputs import find_inputs, without_labels
from sftm_app.tuning.unlabelled import FEWEST, MOST, SCALINGS, TriedScaling, pick, scan_scalings
from sftm_app.ui.evaluate.labelled import all_samples
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.merging.comparison_panel import ReadForm
from sftm_app.ui.merging.comparison_view import FORM
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml, Selection, parse_selection, view_link
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, hint, join, progress, stack, strong, table
from sftm_app.ui.workspace import Workspace

INFO = (
    "In the models folder: a folder with TASK.txt (one text a line) or a folder TASK of images for each task; or "
    "labelled samples. Empty: the demo's."
)
HELP = (
    "Divergence: how far the merge's answers are from those of each task's own model (KL divergence, or for models "
    "that write the share of other answers). 0 is perfect agreement."
)


class ScalingPanel:
    """The panel. Arguments as of SearchPanel."""

    def __init__(self, studio: Studio, workspace: gr.State, read_form: ReadForm, form_inputs: set[Any]) -> None:
        self.studio, self.workspace = studio, workspace
        self.read_form, self.form_inputs = read_form, form_inputs
        with gr.Accordion("Pick the scaling without labels", open=False, elem_id="pick-scaling"):
            block(
                hint(
                    "Merges with the settings above at several scalings, and takes the one at which the merge agrees "
                    "most with each task's own model. Needs inputs, but no labels. Useful for methods whose scaling "
                    "has to be found by trying; where 1 is meant, the default does as well."
                )
            )
            with gr.Row(equal_height=False):
                self.where = gr.Textbox(
                    label="Inputs", info=INFO, max_lines=1, scale=3, min_width=280, elem_id="scaling-where"
                )
                self.count = gr.Slider(
                    FEWEST,
                    MOST,
                    value=FEWEST * 2,
                    step=FEWEST,
                    label="Inputs per task",
                    info="More take longer and make the pick steadier.",
                    scale=2,
                    min_width=220,
                    elem_id="scaling-count",
                )
                with gr.Column(scale=1, min_width=160, elem_classes="sf-buttons"):
                    self.start = gr.Button("Pick the scaling", variant="primary", elem_id="scaling-start")
                    self.cancel = gr.Button("Cancel", variant="stop", elem_id="scaling-cancel")
            self.progress, self.found = block(elem_id="scaling-progress"), LinkedHtml(elem_id="scaling-found")
        self.opened: set[Any] = {self.where, self.progress, self.found}

    def wire(self, write: Callable[[Workspace, MergeSettings], Updates], written: set[Any]) -> Any:
        """Connect the components. write: shows settings in the form, updating `written`; returns the event of it."""
        asked = {self.workspace, self.where, self.count, *self.form_inputs}
        started = self.start.click(
            handle(self.begin), asked, {self.progress, self.found}, trigger_mode="once", concurrency_limit=1, **QUIET
        )
        self.cancel.click(handle(self.give_up), None, self.progress, cancels=[started], **QUIET)

        def use(values: Values, event: gr.EventData) -> Updates:
            settings = self.settings_with(values, parse_selection(event))
            return {} if settings is None else write(values[self.workspace], settings)

        return self.found.select(handle(use), {self.workspace, *self.form_inputs}, written, **QUIET)

    def open(self) -> Updates:
        """Forget what was picked for other models."""
        return {self.where: "", self.progress: "", self.found: ""}

    def begin(self, values: Values) -> Iterator[Updates]:
        """Try every scaling, and show how far each is.

        Raises:
            InputError: there are no inputs, or the method has no scaling.
        """
        ws = values[self.workspace]
        settings, split = self.read_form(values)
        yield {self.progress: progress(None, "Trying the tasks' own models"), self.found: ""}
        try:
            yield from self._scan(ws, settings, split, (values[self.where] or "").strip(), int(values[self.count]))
        except SFTMError:  # the bar goes; the page says what is wrong
            yield {self.progress: ""}
            raise

    def _scan(self, ws: Workspace, settings: MergeSettings, split: bool, where: str, count: int) -> Iterator[Updates]:
        found, inputs = self.studio.preflight(ws).require(), self._inputs(ws, where, count)
        params, tested = values_of(settings.params), []
        session, weights = self.studio.session, settings.weights
        for one in scan_scalings(found, inputs, session, settings.method, params, weights, SCALINGS, split):
            tested.append(one)
            bar = progress(len(tested) / len(SCALINGS), "Merging and trying", f"scaling {one.scaling:g} is done")
            yield {self.progress: bar, self.found: scalings_html(tested, False)}
        yield {self.progress: "", self.found: scalings_html(tested, True)}

    def _inputs(self, ws: Workspace, where: str, count: int) -> dict[str, Samples]:
        if where:
            found = find_inputs(self.studio.preflight(ws).require(), allowed(self.studio.settings, where))
        else:
            found = without_labels(all_samples(self.studio, ws, "")[0])
        return {task: one.take(list(range(min(count, len(one))))) for task, one in found.items()}

    def give_up(self) -> Updates:
        """Cancel."""
        return {self.progress: hint("Cancelled.")}

    def settings_with(self, values: Values, selection: Selection | None) -> MergeSettings | None:
        """The form's settings with the scaling that was clicked; None for anything else: it comes from the browser."""
        data = selection.customdata if selection else None
        if not isinstance(data, tuple) or len(data) != 2 or data[0] != "scaling" or not isinstance(data[1], float):
            return None
        settings, _ = self.read_form(values)
        try:
            return merge_settings(settings.method, {**values_of(settings.params), "scaling": data[1]}, settings.weights)
        except RecipeError:  # the form has another method now
            return None


def scalings_html(tested: Sequence[TriedScaling], ended: bool) -> Html:
    """The scalings with their divergences; the picked one with a link once all are tried."""
    best = pick(tested)

    def row(one: TriedScaling) -> list[object]:
        if not ended:
            return [f"{one.scaling:g}", f"{one.divergence:.4f}"]
        use = view_link("Use this scaling", FORM, ("scaling", one.scaling))
        shown = strong(f"{one.scaling:g}") if one == best else f"{one.scaling:g}"
        return [join([shown, use], " "), f"{one.divergence:.4f}"]

    said = join(["Picked: scaling ", strong(f"{best.scaling:g}"), "."]) if ended else ""
    return stack(hint(said) if said else "", table(["scaling", "divergence"], map(row, tested), (1,)), hint(HELP))
