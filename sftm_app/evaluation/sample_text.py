"""One sample as a text of letters, digits, - and _, so that it can stand in an address; and back."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from math import prod
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from sftm_app.evaluation.samples import ImageSamples, Samples, TextSamples

# Of the pixels or letters. The text comes from an address, and a few bytes can stand for gigabytes.
MOST_BYTES = 12 << 20
_Text = Annotated[str, Field(max_length=1 << 20)]
_Choices = Annotated[tuple[_Text, ...], Field(max_length=1000)] | None


class _Head(BaseModel):
    """What stands before the pixels. shape: of the image; None for a text."""

    choices: _Choices = None
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 14)], ...] | None = None
    label: int = -1
    text: _Text = ""
    target: _Text | None = None
    chat: bool = False


def sample_to_text(sample: Samples) -> str:
    """The first of the samples as a text; "" if it is too large."""
    pixels = b""
    if isinstance(sample, TextSamples):
        head = _Head(text=sample.inputs[0], target=sample.targets[0], chat=sample.chat, choices=sample.choices)
    else:
        image = sample.images[0]
        pixels = image.tobytes()
        head = _Head(shape=image.shape, label=int(sample.labels[0]), choices=sample.choices)
    content = json.dumps(head.model_dump(exclude_defaults=True)).encode() + b"\0" + pixels
    if len(content) > MOST_BYTES:
        return ""
    return base64.urlsafe_b64encode(zlib.compress(content, 9)).decode().rstrip("=")


def sample_from_text(text: str) -> Samples | None:
    """The sample of such a text; None if it is not one."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        content = zlib.decompressobj().decompress(packed, MOST_BYTES + 1)
        before, _, pixels = content.partition(b"\0")
        head = _Head.model_validate_json(before)
    except (binascii.Error, ValueError, zlib.error, ValidationError):
        return None
    if len(content) > MOST_BYTES:
        return None
    if head.shape is None:
        return TextSamples((head.text,), (head.target,), head.choices, head.chat)
    if len(head.shape) not in (2, 3) or head.shape[2:] not in ((), (3,)) or prod(head.shape) != len(pixels):
        return None
    images = np.frombuffer(pixels, np.uint8).reshape(1, *head.shape).copy()
    return ImageSamples(images, np.array([head.label]), head.choices)
