"""Which samples excite a layer's read direction most, and where in them: v . x for every input x of the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sftm_app.architecture.roles import Part
from sftm_app.evaluation.family import EvaluationModel, Samples
from sftm_app.evaluation.locating import Place, twin
from sftm_app.evaluation.reading import NO_SAMPLE, Reading, pieces
from sftm_app.evaluation.samples import ImageSamples

MAX_SAMPLES = 256
# Class and register tokens stand in front of the patches; more tokens than this are something else.
MAX_PREFIX = 16

NOT_FOUND = "The built model holds no parameter with this layer's values: it is put together with others on loading."
EXPERT = "This is one expert of a stack, which reads only the tokens sent to it, so its input is not seen alone."
NOT_RUN = "This layer takes no part in what these samples ask of the model."
NOT_TOLD = "This layer reads its input in another order or shape than the samples have, so it cannot be told apart."
MEANS = "How far the layer's input points along the read direction, with its sign, wherever that is furthest."


@dataclass(frozen=True, eq=False)
class Excitation:
    """How strongly one sample excites a read direction.

    sample: its position among the samples, NO_SAMPLE for a text that is no sample's own (a class name of CLIP).
    score: v . x where it is furthest from zero. image: uint8 as in ImageSamples. heat: v . x at each place of the
    image, float32 (h, w), None where places cannot be told. words: the text in pieces with v . x at each, special
    tokens by their names, None as heat. sentence: where it is strongest, or why no place is told.
    """

    sample: int
    score: float
    image: NDArray[np.uint8] | None
    heat: NDArray[np.float32] | None
    words: tuple[tuple[str, float], ...] | None
    sentence: str


@dataclass(frozen=True, eq=False)
class Excitations:
    """The samples that excite a direction most, strongest first. sentence: what is shown, or why there is nothing."""

    strongest: tuple[Excitation, ...]
    sentence: str
    n_samples: int


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of a batch: its values, (places,) or (h, w), on the CPU; and the tokens that they stand for, if told."""

    sample: int
    values: Tensor
    patches: tuple[int, int] | None
    ids: Sequence[int] | None
    title: str = ""

    @property
    def furthest(self) -> int:
        return int(self.values.abs().argmax())

    @property
    def score(self) -> float:
        return float(self.values.reshape(-1)[self.furthest])


@torch.inference_mode()
def excitations(
    model: EvaluationModel,
    place: Place | None,
    part: Part,
    direction: Tensor,
    samples: Samples,
    n: int = 6,
    limit: int = MAX_SAMPLES,
) -> Excitations:
    """The `n` samples with the largest |v . x| at any place; v: the read direction `direction`, (n inputs,).

    place: where `model` holds the layer, see locate. At most `limit` of the samples are read, as even over their
    classes as can be; a person's own sample is a set of one.

    Raises
        SampleError: the samples are not of the kind that the model reads.
    """
    if place is None or part.expert is not None:
        return Excitations((), NOT_FOUND if place is None else EXPERT, 0)
    numbers = samples.spread(limit)
    own = twin(model)
    module = own.model.get_submodule(place.path)
    direction = direction.to(place.parameter)
    rows: list[_Row] = []
    n_calls = 0
    for readings in own.passes(samples.take(numbers)):
        for reading in readings:
            # What comes behind the layer need not be computed, once it is known to be called no second time.
            calls = _calls(module, direction, reading, stop=n_calls == 1)
            n_calls = max(n_calls, len(calls))
            if not calls:
                break  # another part of the model reads these
            rows += (row for call in calls if call is not None for row in _rows(call, reading))
    if not rows:
        return Excitations((), NOT_TOLD if n_calls else NOT_RUN, len(numbers))
    strongest = [_shown(row, numbers, samples, model.tokenizer) for row in _best(rows)[:n]]
    return Excitations(tuple(strongest), MEANS, len(numbers))


class _Enough(Exception):
    """Ends a forward pass whose rest is not needed."""


def _calls(module: nn.Module, direction: Tensor, reading: Reading, stop: bool) -> list[Tensor | None]:
    """v . x of every call of a layer in one pass, (rows of the batch, ...); None where the input has another form."""
    found: list[Tensor | None] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        found.append(None if inputs is None else _projected(module, inputs, direction))
        if stop:
            raise _Enough

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with contextlib.suppress(_Enough):
            reading.run()
    finally:
        handle.remove()
    return found


def _projected(module: nn.Module, inputs: Tensor, direction: Tensor) -> Tensor | None:
    """v . x for every input x of a linear map: (..., n) -> (...); for a convolution (N, C, H, W) -> (N, h, w)."""
    if isinstance(module, nn.Conv2d):
        if direction.numel() != module.weight[0].numel() or inputs.ndim != 4:
            return None
        kernel = direction.reshape(1, *module.weight.shape[1:]).expand(module.groups, -1, -1, -1)
        # The module's own, with its stride and its way of padding.
        found = module._conv_forward(inputs, kernel, None)
        return found.gather(1, found.abs().argmax(1, keepdim=True))[:, 0]
    multiplies = not isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.modules.conv._ConvNd)
    return inputs @ direction if multiplies and inputs.shape[-1] == len(direction) else None


def _rows(values: Tensor, reading: Reading) -> list[_Row]:
    """The values (rows of the batch, ...) of one call of the layer, row by row; none where they cannot be told."""
    n = len(reading.samples)
    if reading.sequences:
        return _text_rows(values, reading)
    if values.shape[0] != n:
        # Windows of an image stand one behind the other, image after image.
        if values.ndim != 2 or values.shape[0] % n:
            return []
        values, patches = values.reshape(n, -1), None
    else:
        patches = reading.patches
    values = values.float().cpu()
    return [_Row(sample, row, patches, None) for sample, row in zip(reading.samples, values, strict=True)]


def _text_rows(values: Tensor, reading: Reading) -> list[_Row]:
    n = len(reading.samples)
    values = values.float().cpu()
    for sequence in reading.sequences:
        if values.shape == (n * sequence.length,) and sequence.length > 1:
            values = values.reshape(n, sequence.length)
        if values.shape == (n, sequence.length):
            rows = zip(reading.samples, values, sequence.ids, strict=True)
            return [_Row(sample, row[: len(ids)], None, ids, sequence.title) for sample, row, ids in rows]
    if values.shape != (n,):
        return []
    return [_Row(sample, row[None], None, None) for sample, row in zip(reading.samples, values, strict=True)]


def _best(rows: Iterable[_Row]) -> list[_Row]:
    """The strongest row of each sample, strongest first."""
    best: dict[object, _Row] = {}
    for row in rows:
        key = row.sample if row.sample != NO_SAMPLE else tuple(row.ids or ())
        if key not in best or abs(row.score) > abs(best[key].score):
            best[key] = row
    return sorted(best.values(), key=lambda row: -abs(row.score))


def _shown(row: _Row, numbers: Sequence[int], samples: Samples, tokenizer: Any) -> Excitation:
    sample = row.sample if row.sample == NO_SAMPLE else numbers[row.sample]
    if not isinstance(samples, ImageSamples) or sample == NO_SAMPLE:
        words, sentence = _words(row, tokenizer)
        return Excitation(sample, row.score, None, None, words, sentence)
    heat, sentence = _heat(row)
    return Excitation(sample, row.score, samples.images[sample], heat, None, sentence)


def _words(row: _Row, tokenizer: Any) -> tuple[tuple[tuple[str, float], ...] | None, str]:
    if row.ids is None:
        return None, f"The layer reads one vector for the whole text ({row.score:+.3g}), so no word can be told."
    found: list[tuple[str, float]] = []
    held: list[float] = []
    shown = pieces(tokenizer, row.ids)
    for piece, value in zip(shown, row.values.tolist(), strict=True):
        held.append(value)
        if piece:
            found.append((piece, max(held, key=abs)))
            held.clear()
    if held:
        found.append(("\ufffd", max(held, key=abs)))
    piece = max(found, key=lambda pair: abs(pair[1]))[0]
    where = f", in {row.title}" if row.title else ""
    return tuple(found), f"Strongest at {piece.strip() or piece!r} ({row.score:+.3g}){where}."


def _heat(row: _Row) -> tuple[NDArray[np.float32] | None, str]:
    """The values of one image as rows and columns."""
    if row.values.ndim == 0:
        return None, f"The layer reads one vector for the whole image ({row.score:+.3g}), so no place can be told."
    found = row.values if row.values.ndim == 2 else _on_grid(row.values, row.patches)
    if found is None:
        return None, f"{row.score:+.3g} where it is strongest; which place of the image that is cannot be told."
    h, w = found.shape
    heat: NDArray[np.float32] = found.numpy()
    before = row.values.numel() - h * w
    if row.furthest < before:
        which = "the class token" if row.furthest == 0 else "a register token"
        return heat, f"Strongest at {which}, which stands for no place of the image ({row.score:+.3g})."
    y, x = divmod(row.furthest - before, w)
    return heat, f"Strongest in row {y + 1}, column {x + 1} of {h} x {w} places ({row.score:+.3g})."


def _on_grid(values: Tensor, patches: tuple[int, int] | None) -> Tensor | None:
    """Values (tokens,) on the grid of patches, without the tokens in front of them; None where they do not fit it.

    Models that merge patches as they go (Swin) halve both sides.
    """
    if patches is None:
        return None
    h, w = patches
    extra = len(values) - h * w
    while extra < 0 and h % 2 == 0 and w % 2 == 0:
        h, w = h // 2, w // 2
        extra = len(values) - h * w
    fits = extra == 0 or ((h, w) == patches and 0 < extra <= MAX_PREFIX)
    return values[extra:].reshape(h, w) if fits else None
