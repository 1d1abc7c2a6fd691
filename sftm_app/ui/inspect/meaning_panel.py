"""What a feature means: the tokens that its directions point to, and the samples that excite it most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.candidates import INDIVIDUAL
from sftm_app.evaluation.directions import Meaning, TokenScores, read_meaning, token_lenses, write_meaning
from sftm_app.evaluation.excitation import excitations
from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.locating import Place, locate
from sftm_app.evaluation.samples import Samples
from sftm_app.ui.evaluate.labelled import samples_of
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.inspect.pictures import excitations_html
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, card, hint, join, notice, stack

SHOWN = 6
# Samples that are read for a feature: on one thread 0.2 to 0.9 s for the demos' models, about 3 s for GPT-2 small.
MANY_SAMPLES, FEW_SAMPLES = 256, 48
LARGE_BYTES = 200_000_000


class MeaningPanel:
    """Tokens, and samples of the feature's task."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        section("What it means", "Which inputs the feature responds to, and what it writes.")
        self.tokens = block(elem_id="tokens")
        self.where = gr.Textbox(
            label="Labelled samples",
            info="In the models folder, as on the Evaluate tab. Empty: the demo's samples.",
            max_lines=1,
            elem_id="inspect-labelled",
        )
        self.excited = block(elem_id="excited")
        self.views: set[Any] = {self.tokens, self.excited}

    def show(self, state: InspectState) -> Iterator[Updates]:
        """Tokens of the feature's directions, and the samples that excite it, from a forward pass over them."""
        looked = state.look(self.studio)
        member, feature = looked.feature(state.task, state.feature)
        if feature is None:
            yield {self.tokens: "", self.excited: ""}
            return
        try:
            sensed = sense(state, looked, member)
        except SampleError as error:
            yield {self.tokens: notice("info", "The models of this task cannot be tried", error), self.excited: ""}
            return
        tokens = tokens_html(looked, sensed, member, feature)
        try:
            samples = samples_of(self.studio, state.ws, looked.members[member], state.where)
            excited = excited_html(looked, sensed, member, feature, samples, "Samples that excite it most")
        except SFTMError as error:
            excited = no_samples_html(error)
        yield {self.tokens: tokens, self.excited: excited}


@dataclass(frozen=True, eq=False)
class Sensed:
    """A layer as the individual model of one of its tasks holds it. place: None if the model does not hold it."""

    model: EvaluationModel
    place: Place | None
    part: Part


def sense(state: InspectState, looked: LayerView, member: int) -> Sensed:
    """The model that the feature acts in.

    Raises:
        SampleError: the task cannot be tried.
    """
    model_pool, task, layer = looked.studio.model_pool(state.ws), looked.members[member], looked.layer
    model = model_pool.model(INDIVIDUAL, task)
    place = locate(model.model, model_pool.tensor(INDIVIDUAL, task, layer.tensor), layer.tensor)
    return Sensed(model, place, layer.part)


def directions_of(looked: LayerView, member: int, feature: int) -> tuple[Tensor, Tensor]:
    """Write direction u (m,) and read direction v (n,) of a feature."""
    factors = looked.studio.inspector.factors(looked.found, looked.layer).factors[member]
    return factors.U[:, feature], factors.Vh[feature]


def tokens_html(looked: LayerView, sensed: Sensed, member: int, feature: int) -> Html:
    """The tokens that the feature's directions point to, or why there are none."""
    write, read = directions_of(looked, member, feature)
    lenses = token_lenses(sensed.model, sensed.place, sensed.part)
    meanings = [("Reads", read_meaning(lenses, read)), ("Writes", write_meaning(lenses, write))]
    return Html('<div class="sf-two">{}</div>').format(join(_direction(title, meaning) for title, meaning in meanings))


def _direction(title: str, meaning: Meaning) -> Html:
    lists = [
        Html('<div><span class="sf-help">{}</span> {}</div>').format(sign, _tokens(found))
        for sign, found in (("towards", meaning.positive), ("away from", meaning.negative))
        if found is not None
    ]
    return card(title, stack(*lists, hint(meaning.how)))


def _tokens(found: TokenScores) -> Html:
    token_and_score = zip(found.tokens, found.scores, strict=True)
    shown = Html('<span class="sf-token" title="{:+.3f}">{}</span>')
    return join((shown.format(score, _visible(token)) for token, score in token_and_score), " ")


def _visible(token: str) -> str:
    """White space is part of a token, so it is shown."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def excited_html(looked: LayerView, sensed: Sensed, member: int, feature: int, samples: Samples, title: str) -> Html:
    """The samples, and the places in them, that excite the feature's read direction most."""
    _, read = directions_of(looked, member, feature)
    limit = FEW_SAMPLES if sensed.model.n_bytes > LARGE_BYTES else MANY_SAMPLES
    found = excitations(sensed.model, sensed.place, sensed.part, read, samples, SHOWN, limit)
    return excitations_html(found, samples, title)


def no_samples_html(error: SFTMError) -> Html:
    """Why there are no labelled samples."""
    if isinstance(error, SampleError):
        return notice("info", "No samples to show yet", error)
    return notice("warning", "These samples cannot be used", error)
