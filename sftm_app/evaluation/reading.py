"""What a model reads: forward passes over samples, with the places of the input that each row of a layer stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.evaluation.tokens import batches, padded

IMAGES_AT_ONCE = 32
TEXTS_AT_ONCE = 16
# What is looked at of a text: enough to see what excites a layer, and a bound on the time that it takes.
TOKENS_READ = 512
# The number of a text that is no sample's own, such as the name of a class.
NO_SAMPLE = -1


@dataclass(frozen=True)
class TokenRows:
    """One text a row, as tokens. ids: without the filling behind them; length: of every row with it.

    title: which sequence it is, where a model reads two.
    """

    ids: Sequence[Sequence[int]]
    length: int
    title: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """One forward pass over a batch, done by `run`.

    samples: the number of the sample of each row of the batch, or NO_SAMPLE. sequences: what a text model reads.
    patches: rows and columns of the patches that an image is cut into, None where the model cuts none.
    """

    samples: Sequence[int]
    run: Callable[[], object]
    sequences: tuple[TokenRows, ...] = ()
    patches: tuple[int, int] | None = None


def image_readings(
    images: NDArray[np.uint8],
    prepare: Callable[[NDArray[np.uint8]], Tensor],
    forward: Callable[[Tensor], object],
    config: Any,
) -> Iterator[Reading]:
    """Passes over images. prepare: their pixels as the model reads them, (n, channels, height, width)."""
    for numbers in batches(range(len(images)), IMAGES_AT_ONCE):
        pixels = prepare(images[list(numbers)])
        size = getattr(config, "patch_size", None)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        known = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
        patches = (pixels.shape[-2] // sides[0], pixels.shape[-1] // sides[1]) if known else None
        yield Reading(numbers, partial(forward, pixels), patches=patches)


def text_readings(
    rows: Sequence[Sequence[int]],
    samples: Sequence[int],
    forward: Callable[..., object],
    device: Any,
    fill: int,
    at_once: int = TEXTS_AT_ONCE,
) -> Iterator[Reading]:
    """Passes over texts as rows of tokens, each of which belongs to the sample of the number beside it."""
    whole = [row or [fill] for row in rows]
    for part, numbers in zip(batches(whole, at_once), batches(samples, at_once), strict=True):
        inputs = padded(part, device, fill)
        yield Reading(numbers, partial(forward, **inputs), (TokenRows(part, inputs["input_ids"].shape[1]),))


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text: "" where a character needs the tokens behind it too. Special ones by name."""
    special = set(tokenizer.all_special_ids)
    found: list[str] = []
    plain: list[int] = []
    shown = ""
    for number in ids:
        if number in special:
            found.append(str(tokenizer.convert_ids_to_tokens(number)))
            continue
        plain.append(number)
        text = str(tokenizer.decode(plain, clean_up_tokenization_spaces=False))
        whole = not text.endswith("\ufffd")
        found.append(text[len(shown) :] if whole else "")
        shown = text if whole else shown
    return found
