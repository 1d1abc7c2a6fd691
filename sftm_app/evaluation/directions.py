"""What the directions of a singular feature mean in tokens, where they live in the residual stream of a text model.

A read direction v is compared with what tokens put into the stream (the input embedding), a write direction u with what
makes the model say a token (the output embedding; the input embedding where nothing is said from this stream).
nostalgebraist, "interpreting GPT: the logit lens" (2020); Dar, Geva, Gupta and Berant, "Analyzing Transformers in
Embedding Space", arXiv 2209.02535.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.evaluation.excitation import EXPERT, NOT_FOUND
from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.locating import Place, twin
from sftm_app.evaluation.stream import Stream, Table, stream_of

N_SHOWN = 8
NO_TOKENS = "The model reads images only: its directions do not point to tokens."
NOT_IN_TEXT = "This layer takes no part in reading text, so its directions do not point to tokens."
NO_TABLE = "No table of token vectors was found in the model, so there is nothing to compare the direction with."
ELSEWHERE = "is none of the residual stream that all layers share, so it does not point to tokens."


@dataclass(frozen=True)
class TokenScores:
    """Tokens as the tokenizer writes them, furthest first, and their scores, see meaning()."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Meaning:
    """The tokens that a direction points to and away from; None where it does not live among them. how: a sentence."""

    positive: TokenScores | None
    negative: TokenScores | None
    how: str


def _as_it_is(direction: Tensor) -> Tensor:
    return direction


@dataclass(frozen=True, eq=False)
class Lens:
    """What a direction of one layer is compared with.

    vectors: of the tokens, (tokens, width); None where there is nothing to compare with, and `how` says why. carry: the
    direction on the vectors' side of the norms between. to_words: it is one of tokens itself.
    """

    vectors: Tensor | None
    how: str
    carry: Callable[[Tensor], Tensor] = _as_it_is
    to_words: bool = False


@dataclass(frozen=True, eq=False)
class Lenses:
    """Both lenses of one layer of one model. They hold for all of the layer's features, so they are worth keeping."""

    read: Lens
    write: Lens
    tokenizer: Any


def token_lenses(model: EvaluationModel, place: Place | None, part: Part) -> Lenses:
    """How the directions of one layer are seen in tokens, from a few short forward passes.

    place: where `model` holds the layer, see locate; None where it does not.
    """
    tokenizer = model.tokenizer
    nothing = NO_TOKENS if tokenizer is None else NOT_FOUND if place is None else EXPERT
    if tokenizer is None or place is None or part.expert is not None:
        return Lenses(Lens(None, nothing), Lens(None, nothing), tokenizer)
    own = twin(model)
    stream = stream_of(own.model, own.model.get_submodule(place.path), part, len(tokenizer))
    if stream.embedding is None:
        nothing = NO_TABLE if stream.ran else NOT_IN_TEXT
        return Lenses(Lens(None, nothing), Lens(None, nothing), tokenizer)
    return Lenses(_read_lens(stream, stream.embedding), _write_lens(stream, stream.embedding), tokenizer)


def _read_lens(stream: Stream, embedding: Tensor) -> Lens:
    if not stream.reads:
        return Lens(None, f"The read direction {ELSEWHERE}")
    how = "Compared with the input embedding's token vectors"
    if stream.read_gain is None:
        return Lens(embedding, f"{how}.")
    return Lens(embedding, f"{how}, through the norm in front of the layer.", stream.read_gain.back)


def _write_lens(stream: Stream, embedding: Tensor) -> Lens:
    if stream.to_words:
        how = "The layer writes one number for each token, so its direction is made of tokens."
        return Lens(embedding, how, to_words=True)
    if not stream.writes:
        return Lens(None, f"The write direction {ELSEWHERE}")
    table = stream.head or Table(embedding)
    gains = stream.write_gains + ((table.gain,) if table.gain else ())
    passed = ", through the last norm" if table.gain else ""
    how = f"Compared with the {'output' if stream.head else 'input'} embedding's token vectors{passed}."

    def carry(direction: Tensor) -> Tensor:
        for gain in gains:
            direction = gain.forth(direction)
        return direction

    return Lens(table.vectors, how, carry)


def read_meaning(lenses: Lenses, direction: Tensor) -> Meaning:
    """The tokens that excite a read direction v (n,) most, and those that excite it most negatively."""
    return meaning(lenses.read, lenses.tokenizer, direction)


def write_meaning(lenses: Lenses, direction: Tensor) -> Meaning:
    """The tokens that a write direction u (m,) speaks for most, and those that it speaks against."""
    return meaning(lenses.write, lenses.tokenizer, direction)


@torch.inference_mode()
def meaning(lens: Lens, tokenizer: Any, direction: Tensor) -> Meaning:
    """The N_SHOWN tokens of the highest and of the lowest scores.

    Scores are those of a logit, free of scale: the product of the token's vector, less the mean of all, with the
    direction at unit length behind the norms; in units of the tokens' root mean square length, so about a cosine. A
    true cosine would put tokens first that were never trained, whose vectors are short and random.
    """
    if lens.vectors is None:
        return Meaning(None, None, lens.how)
    n_words = min(len(tokenizer), len(lens.vectors))
    if lens.to_words:
        scores = direction[:n_words].float().cpu()
    else:
        vectors = lens.vectors[:n_words].float()
        vectors = vectors - vectors.mean(0)
        carried = lens.carry(direction.to(vectors))
        length = vectors.square().sum(1).mean().sqrt().clamp_min(1e-30)
        scores = (vectors @ (carried / carried.norm().clamp_min(1e-30)) / length).cpu()
    n = min(N_SHOWN, n_words)
    highest, lowest = scores.topk(n), (-scores).topk(n)
    return Meaning(
        _named(tokenizer, highest.indices.tolist(), highest.values.tolist()),
        _named(tokenizer, lowest.indices.tolist(), (-lowest.values).tolist()),
        lens.how,
    )


def _named(tokenizer: Any, ids: list[int], scores: list[float]) -> TokenScores:
    return TokenScores(tuple(_word(tokenizer, number) for number in ids), tuple(scores))


def _word(tokenizer: Any, number: int) -> str:
    """A token as text; a piece of a character by its name in the vocabulary."""
    text = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    return text if text.strip() and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(number))
