"""Ablate and steer: one feature of the merged model switched off or scaled, and what that does to its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from sftm_app.evaluation.candidates import Candidate, method_candidate
from sftm_app.evaluation.family import Answer, Samples
from sftm_app.evaluation.steering import steered
from sftm_app.linalg.low_rank import LowRank
from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.trying import scores, verdicts
from sftm_app.ui.view import settings_title
from sftm_app.ui.widgets import PlotlyView
from sftm_app.ui.widgets.html import Safe, hint, join
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class SteerControls:
    """The components of the panel."""

    factor: gr.Slider
    verdict: gr.HTML
    chart: PlotlyView

    @property
    def views(self) -> list[Any]:
        """The outputs of `steer`."""
        return [self.verdict, self.chart]

    def on_change(self, settled: Callable[..., Any]) -> None:
        """settled is wired to the factor when it is let go."""
        settled(self.factor.release)


def build_steer() -> SteerControls:
    """Lay the panel out."""
    return SteerControls(
        gr.Slider(
            -2.0,
            4.0,
            value=0.0,
            step=0.25,
            label="Times the feature",
            info="0 switches it off, 1 leaves it as merged, more strengthens it, less than 0 turns it round.",
            elem_id="steer-factor",
        ),
        gr.HTML(apply_default_css=False, elem_id="steer-verdict"),
        PlotlyView(label="Answers with the feature scaled", filename="steered", visible=False, elem_id="steer-chart"),
    )


def merged_candidate(settings: MergeSettings) -> Candidate:
    """The merge by these settings, done in memory when it is first needed."""
    return method_candidate(settings.method, asdict(settings.params), settings.weights)


def steer(
    studio: Studio,
    ws: Workspace,
    looked: LayerView,
    member: int,
    feature: int,
    factor: float,
    settings: MergeSettings,
    sample: Samples,
) -> tuple[Safe, Any]:
    """What the merged model answers to one sample, as it is and with the feature's share of it scaled.

    Raises
        SampleError: the task cannot be tried, or the layer cannot be found in its model.
    """
    model_pool, task = studio.model_pool(ws), looked.members[member]
    what_if = studio.inspector.what_if(looked.found, looked.layer)
    coefficient = float(what_if.predict(settings).coefficients[member][feature])
    factors = what_if.made.factors[member]
    write, read = factors.U[:, feature : feature + 1], factors.Vh[feature : feature + 1]
    change = LowRank(write * ((factor - 1.0) * coefficient), read)
    merged = merged_candidate(settings)
    model = model_pool.model(merged, task)
    stored = model_pool.tensor(merged, task, looked.layer.tensor)
    scaled = steered(model, stored, looked.layer.part, change, looked.layer.tensor)
    said: list[Answer] = [model.answer(sample)[0], scaled.answer(sample)[0]]
    models = [
        Candidate(merged.key, f"Merged: {settings_title(settings)}", "individual"),
        Candidate("steered", f"Feature {feature + 1} of {task} × {factor:g}", settings.method),
    ]
    family = model_pool.family(task)
    shares = hint(
        f"Its share of the merged weight is {coefficient:.3g} · u vᵀ; "
        + ("the answer stays the same." if said[0].said == said[1].said else "the answer changes.")
    )
    return join([verdicts(family, models, said), shares]), scores(family, models, said)
