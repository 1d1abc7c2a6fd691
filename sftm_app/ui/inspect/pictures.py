"""Samples with the places in colour where a layer reads a direction."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sftm_app.evaluation.excitation import Excitation, Excitations
from sftm_app.evaluation.samples import Samples, TextSamples
from sftm_app.ui.widgets.html import Html, heading, hint, join, notice, stack

SIDE = 132
# Colour-blind-safe: orange for positive, blue for negative excitation.
POSITIVE, NEGATIVE = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])
STRONGEST = 0.8
LEGEND = "Orange is positive excitation, blue negative; the stronger the colour, the stronger the excitation."


def excitations_html(found: Excitations, samples: Samples, title: str) -> Html:
    """The samples of the strongest excitation, each with its places in colour."""
    if not found.strongest:
        return stack(heading(title), notice("info", "There is nothing to show", found.sentence))
    pictures = [_picture(one, samples) for one in found.strongest if one.image is not None]
    body: list[object] = [Html('<div class="sf-pictures">{}</div>').format(join(pictures))] if pictures else []
    body += [_text(one, samples) for one in found.strongest if one.image is None]
    without_places = {one.sentence for one in found.strongest if one.heat is None and one.words is None}
    of = f" Searched {found.n_samples} samples of the task." if found.n_samples > 1 else ""
    return stack(heading(title, found.sentence + of), *body, hint(" ".join([LEGEND, *sorted(without_places)])))


def _caption(one: Excitation, samples: Samples) -> str:
    """The sample's number and target, and its score; of a person's own sample the score alone."""
    score = f"{one.score:+.3g}"
    if len(samples) == 1:
        return score
    targets = samples.targets if isinstance(samples, TextSamples) else ()
    target = targets[one.sample] if 0 <= one.sample < len(targets) else None
    number = [f"sample {one.sample + 1}"] if one.sample >= 0 else []
    return ", ".join([*number, *([f"target {target.strip()[:40]}"] if target else []), score])


def _picture(one: Excitation, samples: Samples) -> Html:
    assert one.image is not None
    label = _caption(one, samples)
    return Html(
        '<figure class="sf-picture"><img src="{}" alt="{}" width="{}" height="{}"><figcaption>{}</figcaption></figure>'
    ).format(picture_uri(one.image, one.heat), label, SIDE, SIDE, label)


def picture_uri(image: NDArray[np.uint8], heat: NDArray[np.float32] | None) -> str:
    """A PNG as a data URI: the image with the signed heat (h, w) laid over its patches."""
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    pixels = _enlarged(Image.fromarray(rgb))
    if heat is not None and heat.size and float(np.abs(heat).max()) > 0:
        strength = _enlarged(Image.fromarray((heat / np.abs(heat).max()).astype(np.float32)))[..., None]
        alpha = STRONGEST * np.abs(strength)
        pixels = pixels * (1 - alpha) + np.where(strength > 0, POSITIVE, NEGATIVE) * alpha
    held = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _enlarged(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), np.float64)


def _text(one: Excitation, samples: Samples) -> Html:
    words = one.words or ()
    strongest = max((abs(value) for _, value in words), default=0.0) or 1.0
    shown = [_word(text, value, STRONGEST * abs(value) / strongest) for text, value in words]
    return Html('<div class="sf-excited"><div class="sf-stat-hint">{}</div><div>{}</div></div>').format(
        _caption(one, samples), join(shown) or one.sentence
    )


def _word(text: str, value: float, alpha: float) -> Html:
    red, green, blue = (POSITIVE if value > 0 else NEGATIVE).astype(int)
    span = Html('<span style="background:rgba({},{},{},{:.2f})" title="{:+.3g}">{}</span>')
    return Html(span.format(red, green, blue, alpha, value, text))
