"""Which samples excite a layer's read direction most, and where: v . x for every input x of the layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from sftm_app.architecture.roles import Part
from sftm_app.evaluation.family import NO_SAMPLE, EvaluationModel, ForwardPass
from sftm_app.evaluation.locating import Place, share_weights
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.evaluation.tokens import token_texts
from sftm_app.evaluation.trace import first_tensor

MAX_SAMPLES = 256
# Class and register tokens come before the patches; more tokens than this are something else.
MAX_PREFIX = 16

NOT_FOUND = "The built model holds no parameter with this layer's values: loading the model combines it with others."
EXPERT = "This is one expert of a stack. It reads only the tokens routed to it, so its input cannot be seen alone."
NOT_RUN = "This layer takes no part in what the model does with these samples."
NOT_TOLD = "This layer reads its input in another order or shape than the samples, so no place can be shown."
MEANS = "The product of the layer's input with the read direction, with its sign, at the place where it is largest."

# Modules that have a weight but do not multiply the last dimension of their input with it.
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHER_MODULES = (nn.MultiheadAttention, nn.RNNBase, nn.Conv1d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True, eq=False)
class Excitation:
    """How strongly one sample excites a read direction.

    Attributes:
        sample: its position among the samples; NO_SAMPLE for a text that is not a sample (a class name of CLIP).
        score: the v . x with the largest magnitude.
        image: the image, uint8 as in ImageSamples; None for a text.
        heat: v . x at each place of the image, float32 (h, w); None if the places are not known.
        words: the pieces of the text with v . x at each, special tokens by their names; None if they are not known.
        sentence: where it is strongest, or why no place can be named.
    """

    sample: int
    score: float
    image: NDArray[np.uint8] | None
    heat: NDArray[np.float32] | None
    words: tuple[tuple[str, float], ...] | None
    sentence: str


@dataclass(frozen=True, eq=False)
class Excitations:
    """The samples that excite a direction most.

    Attributes:
        strongest: the strongest first.
        sentence: what is shown, or why there is nothing to show.
        n_samples: how many samples were read.
    """

    strongest: tuple[Excitation, ...]
    sentence: str
    n_samples: int


@dataclass(frozen=True, eq=False)
class _Row:
    """v . x of one row of a batch, (places,) or (h, w), on the CPU, and what the places are, if that is known."""

    sample: int
    values: Tensor
    patches: tuple[int, int] | None = None
    ids: Sequence[int] | None = None
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
    """Find the samples with the largest |v . x| at any place.

    Args:
        model: the model that reads the samples.
        place: where the model holds the layer, see `locate`; None if it does not.
        part: the linear map in that parameter.
        direction: the read direction v, (n inputs,).
        samples: to choose from; a single one is shown as it is.
        n: how many to return.
        limit: how many to read at most, evenly over the classes.

    Raises:
        SampleError: the model cannot read the samples.
    """
    if place is None or part.expert is not None:
        return Excitations((), NOT_FOUND if place is None else EXPERT, 0)
    numbers = samples.spread(limit)
    own = share_weights(model)
    module = own.model.get_submodule(place.path)
    direction = direction.to(place.parameter)
    rows: list[_Row] = []
    n_calls = 0
    for passes in own.passes(samples.take(numbers)):
        for one in passes:
            # A layer that was called once is called once in every batch, so the rest of the pass can be skipped.
            inputs = _inputs(module, one, stop=n_calls == 1)
            n_calls = max(n_calls, len(inputs))
            if not inputs:
                break  # another part of the model reads these
            for x in inputs:
                values = None if x is None else _project(module, x, direction)
                rows += [] if values is None else _rows(values.float().cpu(), one)
    if not rows:
        return Excitations((), NOT_TOLD if n_calls else NOT_RUN, len(numbers))
    strongest = [_describe(row, numbers, samples, model.tokenizer) for row in _best(rows)[:n]]
    return Excitations(tuple(strongest), MEANS, len(numbers))


class _Enough(Exception):
    """Ends a forward pass early."""


def _inputs(module: nn.Module, one: ForwardPass, stop: bool) -> list[Tensor | None]:
    """The input of every call of a layer in one pass; None where it is not a tensor."""
    found: list[Tensor | None] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(first_tensor(args, kwargs))
        if stop:
            raise _Enough

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with contextlib.suppress(_Enough):
            one.run()
    finally:
        handle.remove()
    return found


def _project(module: nn.Module, x: Tensor, direction: Tensor) -> Tensor | None:
    """v . x for every input of a linear map, (..., n) -> (...), or of a convolution, (N, C, H, W) -> (N, h, w)."""
    if isinstance(module, nn.Conv2d):
        if direction.numel() != module.weight[0].numel() or x.ndim != 4:
            return None
        # The module itself with the direction as its only kernel, so that stride and padding are its own.
        weights = {"weight": direction.reshape(1, *module.weight.shape[1:]).expand(module.groups, -1, -1, -1)}
        if module.bias is not None:
            weights["bias"] = direction.new_zeros(module.groups)
        found: Tensor = functional_call(module, weights, (x,))
        return found.gather(1, found.abs().argmax(1, keepdim=True))[:, 0]
    return x @ direction if not isinstance(module, _OTHER_MODULES) and x.shape[-1] == len(direction) else None


def _rows(values: Tensor, one: ForwardPass) -> list[_Row]:
    """The values (rows of the batch, ...) of one call of the layer, row by row; none if rows cannot be separated."""
    n = len(one.samples)
    if one.sequences:
        return _text_rows(values, one)
    patches = one.patches
    if values.shape[0] != n:
        # The windows of an image follow each other, image after image.
        if values.ndim != 2 or values.shape[0] % n:
            return []
        values, patches = values.reshape(n, -1), None
    return [_Row(sample, row, patches) for sample, row in zip(one.samples, values, strict=True)]


def _text_rows(values: Tensor, one: ForwardPass) -> list[_Row]:
    n = len(one.samples)
    for sequence in one.sequences:
        if values.shape == (n * sequence.length,) and sequence.length > 1:
            values = values.reshape(n, sequence.length)
        if values.shape == (n, sequence.length):
            rows = zip(one.samples, values, sequence.ids, strict=True)
            return [_Row(sample, row[: len(ids)], None, ids, sequence.title) for sample, row, ids in rows]
    if values.shape != (n,):
        return []
    return [_Row(sample, row[None]) for sample, row in zip(one.samples, values, strict=True)]


def _best(rows: Iterable[_Row]) -> list[_Row]:
    """The strongest row of each sample, the strongest first."""
    best: dict[object, _Row] = {}
    for row in sorted(rows, key=lambda row: -abs(row.score)):
        best.setdefault(row.sample if row.sample != NO_SAMPLE else tuple(row.ids or ()), row)
    return list(best.values())


def _describe(row: _Row, numbers: Sequence[int], samples: Samples, tokenizer: Any) -> Excitation:
    sample = row.sample if row.sample == NO_SAMPLE else numbers[row.sample]
    if not isinstance(samples, ImageSamples) or sample == NO_SAMPLE:
        words, sentence = _words(row, tokenizer)
        return Excitation(sample, row.score, None, None, words, sentence)
    heat, sentence = _heat(row)
    return Excitation(sample, row.score, samples.images[sample], heat, None, sentence)


def _words(row: _Row, tokenizer: Any) -> tuple[tuple[tuple[str, float], ...] | None, str]:
    if row.ids is None:
        return None, f"The layer reads one vector for the whole text ({row.score:+.3g}), so no word can be named."
    found: list[tuple[str, float]] = []
    held: list[float] = []
    for piece, value in zip(token_texts(tokenizer, row.ids), row.values.tolist(), strict=True):
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
        return None, f"The layer reads one vector for the whole image ({row.score:+.3g}), so no place can be named."
    found = row.values if row.values.ndim == 2 else _on_grid(row.values, row.patches)
    if found is None:
        return None, f"It is {row.score:+.3g} at its strongest; the place in the image is not known."
    h, w = found.shape
    heat: NDArray[np.float32] = found.numpy()
    n_prefix = row.values.numel() - h * w
    if row.furthest < n_prefix:
        which = "the class token" if row.furthest == 0 else "a register token"
        return heat, f"Strongest at {which}, which stands for no place of the image ({row.score:+.3g})."
    y, x = divmod(row.furthest - n_prefix, w)
    return heat, f"Strongest in row {y + 1}, column {x + 1} of {h} x {w} places ({row.score:+.3g})."


def _on_grid(values: Tensor, patches: tuple[int, int] | None) -> Tensor | None:
    """Values (tokens,) on the grid of patches, without the tokens before them; None if they do not fit.

    Models that merge patches between blocks (Swin) halve both sides.
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
