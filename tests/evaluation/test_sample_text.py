"""A sample comes back from its text; anything else is no sample."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftm_app.evaluation import sample_text
from sftm_app.evaluation.sample_text import sample_from_text, sample_to_text
from sftm_app.evaluation.samples import ImageSamples, TextSamples

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "sample",
    [
        TextSamples(("a cat\n\0 ü",), (None,)),
        TextSamples(("x",), (" sat",), (" sat", " ran"), chat=True),
        TextSamples(("",), ("",), None),
    ],
)
def test_a_text_comes_back(sample: TextSamples) -> None:
    assert sample_from_text(sample_to_text(sample)) == sample


@pytest.mark.parametrize("shape", [(28, 28), (5, 7, 3)])
@pytest.mark.parametrize("choices", [None, ("cat", "dog")])
def test_an_image_comes_back(shape: tuple[int, ...], choices: tuple[str, ...] | None) -> None:
    image = RANDOM.integers(0, 256, (1, *shape)).astype(np.uint8)
    found = sample_from_text(sample_to_text(ImageSamples(image, np.array([4]), choices)))
    assert isinstance(found, ImageSamples)
    assert (found.images == image).all() and found.labels.tolist() == [4] and found.choices == choices


def test_a_glyph_is_short_enough_for_an_address() -> None:
    glyph = np.zeros((1, 28, 28), np.uint8)
    glyph[0, 6:22, 8:20] = RANDOM.integers(0, 256, (16, 12))
    assert len(sample_to_text(ImageSamples(glyph, np.array([-1])))) < 500


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    sample_from_text(text)


def packed(head: object, pixels: bytes = b"") -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(head).encode() + b"\0" + pixels)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        packed([]),
        packed({"shape": [2, 2]}, b"123"),
        packed({"shape": [2, 2, 4]}, b"1" * 16),
        packed({"shape": [0, 2]}),
        packed({"shape": [4]}, b"1234"),
        packed({"shape": ["x", 2]}),
        packed({"text": 3}),
        packed({"choices": ["x"] * 2000}),
        packed({"text": "x" * 20}) + "!",
    ],
)
def test_what_is_no_sample_is_none(text: str) -> None:
    assert sample_from_text(text) is None


def test_a_few_bytes_cannot_stand_for_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_text, "MOST_BYTES", 1000)
    assert sample_from_text(packed({"text": "x" * 2000})) is None
    assert sample_to_text(TextSamples(("x" * 2000,), (None,))) == ""
