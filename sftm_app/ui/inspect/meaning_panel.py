"""What a feature means: tokens that its directions point to, and the samples and places that excite it most."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.errors import SampleError, SFTMError
from sftm_app.evaluation.candidates import INDIVIDUAL
from sftm_app.evaluation.directions import Meaning, TokenScores, read_meaning, token_lenses, write_meaning
from sftm_app.evaluation.excitation import Excitation, Excitations, excitations
from sftm_app.evaluation.family import EvaluationModel, Samples
from sftm_app.evaluation.locating import Place, locate
from sftm_app.evaluation.samples import ImageSamples, centre_glyph
from sftm_app.evaluation.texts import TextSamples
from sftm_app.ui.inspect.layer_view import LayerView
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.evaluate_inputs import image_sample
from sftm_app.ui.trying.labelled import samples_of
from sftm_app.ui.widgets.html import Safe, card, heading, hint, join, notice, safe, stack
from sftm_app.ui.workspace import Workspace

SHOWN = 6
# Samples that are read for a feature: on one thread 0.2 to 0.9 s for the demos' models, some 3 s for GPT-2 small.
MANY_SAMPLES, FEW_SAMPLES = 256, 48
LARGE_BYTES = 200_000_000
SIDE = 132
# Colour-blind-safe: the feature is read forward (orange) or backward (blue).
FORWARD, BACKWARD = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])
STRONGEST = 0.8


def meaning_html(read: Meaning, write: Meaning) -> Safe:
    """The tokens of both directions, or why there are none."""
    return Safe(f'<div class="sf-two">{join([_direction("Reads", read), _direction("Writes", write)])}</div>')


def _direction(title: str, meaning: Meaning) -> Safe:
    lists = [
        Safe(f'<div><span class="sf-help">{safe(sign)}</span> {_tokens(found)}</div>')
        for sign, found in (("towards", meaning.positive), ("away from", meaning.negative))
        if found is not None
    ]
    return card(title, stack(*lists, hint(meaning.how)))


def _tokens(found: TokenScores) -> Safe:
    shown = [
        Safe(f'<span class="sf-token" title="{score:+.3f}">{safe(_visible(token))}</span>')
        for token, score in zip(found.tokens, found.scores, strict=True)
    ]
    return join(shown, " ")


def _visible(token: str) -> str:
    """White space is part of a token, so it is shown."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


@dataclass(frozen=True, eq=False)
class Sensed:
    """A layer as the individual model of one of its tasks holds it. place: None where the model does not."""

    model: EvaluationModel
    place: Place | None
    part: Part


def sense(studio: Studio, ws: Workspace, looked: LayerView, member: int) -> Sensed:
    """The model that the feature acts in.

    Raises
        SampleError: the task cannot be tried.
    """
    model_pool, task, layer = studio.model_pool(ws), looked.members[member], looked.layer
    model = model_pool.model(INDIVIDUAL, task)
    place = locate(model.model, model_pool.tensor(INDIVIDUAL, task, layer.tensor), layer.tensor)
    return Sensed(model, place, layer.part)


def tokens_html(studio: Studio, looked: LayerView, sensed: Sensed, member: int, feature: int) -> Safe:
    """The tokens that the feature's directions point to, or why there are none."""
    write, read = directions_of(studio, looked, member, feature)
    lenses = token_lenses(sensed.model, sensed.place, sensed.part)
    return meaning_html(read_meaning(lenses, read), write_meaning(lenses, write))


def excited_html(
    studio: Studio,
    looked: LayerView,
    sensed: Sensed,
    member: int,
    feature: int,
    samples: Samples,
    title: str = "What excites it most",
) -> Safe:
    """The samples, and the places in them, that excite the feature's read direction most."""
    _, read = directions_of(studio, looked, member, feature)
    limit = FEW_SAMPLES if sensed.model.n_bytes > LARGE_BYTES else MANY_SAMPLES
    found = excitations(sensed.model, sensed.place, sensed.part, read, samples, SHOWN, limit)
    return excitations_html(found, samples, title)


def excitations_html(found: Excitations, samples: Samples, title: str) -> Safe:
    """The samples of the strongest excitation, each with its places in colour."""
    if not found.strongest:
        return stack(heading(title), notice("info", "There is nothing to show", found.sentence))
    body: list[object] = []
    if any(one.image is not None for one in found.strongest):
        pictures = join(_picture(one, samples) for one in found.strongest if one.image is not None)
        body.append(Safe(f'<div class="sf-pictures">{pictures}</div>'))
    body += [_text(one, samples) for one in found.strongest if one.image is None]
    legend = "Orange is read forward, blue backward; the stronger the colour, the stronger the excitation."
    untold = {one.sentence for one in found.strongest if one.heat is None and one.words is None}
    of = f" Of {found.n_samples} samples of the task." if found.n_samples > 1 else ""
    return stack(heading(title, found.sentence + of), *body, hint(" ".join([legend, *sorted(untold)])))


def _answer(one: Excitation, samples: Samples) -> str:
    """What is known of the sample: its number, and its target; nothing of a person's own."""
    if len(samples) == 1:
        return ""
    targets = samples.targets if isinstance(samples, TextSamples) else ()
    target = targets[one.sample] if 0 <= one.sample < len(targets) else None
    said = f"sample {one.sample + 1}, " if one.sample >= 0 else ""
    return f"{said}target {target.strip()[:40]}, " if target else said


def _picture(one: Excitation, samples: Samples) -> Safe:
    assert one.image is not None
    source = picture_uri(one.image, one.heat)
    label = f"{_answer(one, samples)}{one.score:+.3g}"
    return Safe(
        f'<figure class="sf-picture"><img src="{source}" alt="{safe(label)}" width="{SIDE}" height="{SIDE}">'
        f"<figcaption>{safe(label)}</figcaption></figure>"
    )


def picture_uri(image: NDArray[np.uint8], heat: NDArray[np.float32] | None) -> str:
    """A PNG as a data URI: the image with the signed heat (h, w) laid over its patches."""
    gray = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    pixels = np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.NEAREST), np.float64)
    if heat is not None and heat.size and float(np.abs(heat).max()) > 0:
        strength = np.asarray(
            Image.fromarray((heat / np.abs(heat).max()).astype(np.float32)).resize(
                (SIDE, SIDE), Image.Resampling.NEAREST
            ),
            np.float64,
        )[..., None]
        colour = np.where(strength > 0, FORWARD, BACKWARD)
        alpha = STRONGEST * np.abs(strength)
        pixels = pixels * (1 - alpha) + colour * alpha
    held = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _text(one: Excitation, samples: Samples) -> Safe:
    words = one.words or ()
    strongest = max((abs(value) for _, value in words), default=0.0) or 1.0
    shown = []
    for text, value in words:
        red, green, blue = (FORWARD if value > 0 else BACKWARD).astype(int)
        alpha = STRONGEST * abs(value) / strongest
        shown.append(
            f'<span style="background:rgba({red},{green},{blue},{alpha:.2f})" title="{value:+.3g}">{safe(text)}</span>'
        )
    return Safe(
        f'<div class="sf-excited"><div class="sf-stat-hint">{safe(_answer(one, samples))}{one.score:+.3g}</div>'
        f"<div>{''.join(shown) or safe(one.sentence)}</div></div>"
    )


def samples_for(studio: Studio, ws: Workspace, looked: LayerView, member: int, where: str) -> Samples | Safe:
    """Samples of the feature's task; or a notice on why there are none."""
    try:
        return samples_of(studio, ws, looked.members[member], where)
    except SampleError as error:
        return notice("info", "No samples to look at yet", error)
    except SFTMError as error:
        return notice("warning", "These samples cannot be used", error)


def drawn_sample(pixels: NDArray[np.uint8] | None) -> ImageSamples | None:
    """A drawing as a sample; None for an empty pad."""
    glyph = None if pixels is None else centre_glyph(pixels)
    return None if glyph is None else image_sample(glyph, "")


def directions_of(studio: Studio, looked: LayerView, member: int, feature: int) -> tuple[Tensor, Tensor]:
    """Write direction u (m,) and read direction v (n,) of a feature."""
    factors = studio.inspector.factors(looked.found, looked.layer).factors[member]
    return factors.U[:, feature], factors.Vh[feature]
