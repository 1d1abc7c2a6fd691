"""Ablate and steer: a feature of the merged model is switched off or scaled, and the answers before and after."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.evaluation.candidates import Candidate, method_candidate
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.samples import Samples
from sftm_app.evaluation.steering import steered
from sftm_app.linalg.low_rank import LowRank
from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.evaluate.answers import merges_quickly, scores, verdicts
from sftm_app.ui.evaluate.labelled import samples_of
from sftm_app.ui.evaluate.sample_inputs import SampleInputs
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.meaning_panel import excited_html, no_samples_html, sense
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, hint, join, notice
from sftm_app.ui.wording import settings_title


class SteerPanel:
    """The inputs for a sample, the factor, and the answers.

    Attributes:
        sample: the sample that is tried.
        fitted: the task that the inputs suit.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.sample, self.fitted = gr.State(None), gr.State("")
        section(
            "Ablate and steer",
            "Switch the feature off in the merged model, or scale it, and see how its answers change. No file is "
            "touched.",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                self.boxes = SampleInputs(studio, "inspect-")
            with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
                self.factor = gr.Slider(
                    -2.0,
                    4.0,
                    value=0.0,
                    step=0.25,
                    label="Multiply the feature by",
                    info="0 switches it off, 1 leaves it as merged, larger values strengthen it, negative values "
                    "reverse it.",
                    elem_id="steer-factor",
                )
                self.verdict = block(elem_id="steer-verdict")
                self.chart = PlotlyView(
                    label="Answers with the feature scaled", filename="steered", visible=False, elem_id="steer-chart"
                )
                self.excited = block(elem_id="own-excited")
        self.views: set[Any] = {self.verdict, self.chart, self.excited}
        self.inputs: set[Any] = {self.sample, self.fitted, *self.boxes.all}

    def reset(self) -> Updates:
        """Put the sample away, when other models are loaded."""
        return {self.sample: None, self.fitted: ""}

    def suit(self, state: InspectState) -> Updates:
        """Suit the inputs to the feature's task. A sample of another task is put away."""
        if state.task == state.fitted:
            return {}
        return {self.sample: None, self.fitted: state.task, **self.boxes.suit(state.ws, state.task)}

    def pick(self, state: InspectState) -> Updates:
        """Pick a random labelled sample of the feature's task, or say why there is none."""
        looked = state.look(self.studio)
        try:
            found = samples_of(self.studio, state.ws, looked.members[looked.member(state.task)], state.where)
        except SFTMError as error:
            return {self.sample: None, self.boxes.known: no_samples_html(error)}
        sample = found.take([random.randrange(len(found))])
        return {self.sample: sample, **self.boxes.show(state.ws, sample)}

    def show(self, state: InspectState) -> Iterator[Updates]:
        """What the merged model answers to the sample with and without the feature scaled, and where it is read."""
        looked = state.look(self.studio)
        member, feature = looked.feature(state.task, state.feature)
        if feature is None:
            yield self._hint("This task did not change the layer, so there is nothing to switch off.")
        elif state.sample is None:
            yield self._hint("Pick a sample, or enter one of your own, to see how the feature changes the answer.")
        else:
            try:
                answers, figure = steer(state, looked, member, feature, state.sample)
                title = "Where it is read in this sample"
                excited = excited_html(looked, sense(state, looked, member), member, feature, state.sample, title)
            except SFTMError as error:
                yield self._nothing(notice("warning", "This feature cannot be scaled", error))
                return
            chart = gr.update(value=figure, visible=figure is not None)
            yield {self.verdict: answers, self.chart: chart, self.excited: excited}

    def show_if_quick(self, state: InspectState) -> Iterator[Updates]:
        """The same after the settings changed, unless these models take long to merge."""
        if state.sample is not None and not merges_quickly(self.studio, state.ws):
            yield self._hint("The settings have changed. Ask again; these models take a while to merge.")
        else:
            yield from self.show(state)

    def _hint(self, text: str) -> Updates:
        return self._nothing(hint(text))

    def _nothing(self, why: Html) -> Updates:
        return {self.verdict: why, self.chart: gr.update(visible=False), self.excited: ""}


def merged_candidate(settings: MergeSettings) -> Candidate:
    """The merge with these settings, computed in memory when it is first needed."""
    return method_candidate(settings.method, asdict(settings.params), settings.weights)


def steer(state: InspectState, looked: LayerView, member: int, feature: int, sample: Samples) -> tuple[Html, Any]:
    """The answers of the merged model to one sample, as it is and with the feature scaled; and their scores.

    Raises:
        SampleError: the task cannot be tried, or the layer cannot be found in its model.
    """
    model_pool, task = looked.studio.model_pool(state.ws), looked.members[member]
    what_if = looked.what_if
    share = share_of(what_if.predict(state.settings), member, feature)
    factors = what_if.made.factors[member]
    write, read = factors.U[:, feature : feature + 1], factors.Vh[feature : feature + 1]
    change = LowRank(write * ((state.factor - 1.0) * share), read)
    merged = merged_candidate(state.settings)
    model = model_pool.model(merged, task)
    stored = model_pool.tensor(merged, task, looked.layer.tensor)
    scaled = steered(model, stored, looked.layer.part, change, looked.layer.tensor)
    given: list[Answer] = [model.answer(sample)[0], scaled.answer(sample)[0]]
    models = [
        Candidate(merged.key, f"Merged: {settings_title(state.settings)}", "individual"),
        Candidate("steered", f"Feature {feature + 1} of {task} × {state.factor:g}", state.settings.method),
    ]
    family = model_pool.family(task)
    effect = "stays the same" if given[0].text == given[1].text else "changes"
    shares = hint(f"The merged weight holds {share:.3g} · u vᵀ of this feature; the answer {effect}.")
    return join([verdicts(family, models, given), shares]), scores(family, models, given)


def share_of(prediction: Any, member: int, feature: int) -> float:
    """How much of a feature's u vᵀ a merge adds: its coefficient in the sum, or what is read of it."""
    known = prediction.coefficients if prediction.in_span else prediction.readouts
    return float(known[member][feature])
