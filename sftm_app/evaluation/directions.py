"""What the read and write directions of a singular feature mean in tokens.

A read direction v is compared with what tokens put into the residual stream (the input embedding); a write direction u
with what makes the model say a token (the output embedding, or the input embedding where no output embedding reads the
stream). See nostalgebraist, "interpreting GPT: the logit lens" (2020), and Dar, Geva, Gupta and Berant, "Analyzing
Transformers in Embedding Space", arXiv 2209.02535.
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
from sftm_app.evaluation.locating import Place, share_weights
from sftm_app.evaluation.residual_stream import Gain, Stream, Table, stream_of

N_SHOWN = 8
NO_TOKENS = "This model reads only images, so its directions do not point to tokens."
NOT_IN_TEXT = "This layer takes no part in reading text, so its directions do not point to tokens."
NO_TABLE = "No table of token vectors was found in the model, so there is nothing to compare the direction with."
ELSEWHERE = "is not part of the residual stream that all layers share, so it does not point to tokens."


@dataclass(frozen=True)
class TokenScores:
    """Tokens as the tokenizer writes them, the strongest first, and their scores; see `meaning`."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Meaning:
    """What a direction means in tokens.

    Attributes:
        positive: the tokens that it points to; None if it cannot be compared with tokens.
        negative: the tokens that it points away from; None likewise.
        how: a sentence on how it was compared, or why it cannot be.
    """

    positive: TokenScores | None
    negative: TokenScores | None
    how: str


def _unchanged(direction: Tensor) -> Tensor:
    return direction


@dataclass(frozen=True, eq=False)
class Lens:
    """How a direction of one layer is compared with tokens.

    Attributes:
        vectors: of the tokens, (tokens, width); None if there is nothing to compare with.
        how: see Meaning.
        carry: moves a direction through the norms between the layer and the vectors.
        to_words: whether the direction has one entry per token already.
    """

    vectors: Tensor | None
    how: str
    carry: Callable[[Tensor], Tensor] = _unchanged
    to_words: bool = False


@dataclass(frozen=True, eq=False)
class Lenses:
    """The lenses for both directions of one layer. They serve all of its features."""

    read: Lens
    write: Lens
    tokenizer: Any


def token_lenses(model: EvaluationModel, place: Place | None, part: Part) -> Lenses:
    """Find out how the directions of one layer relate to tokens, with a few short forward passes.

    Args:
        model: the model that the feature acts in.
        place: where the model holds the layer, see `locate`; None if it does not.
        part: the linear map in that parameter.
    """
    tokenizer = model.tokenizer
    nothing = NO_TOKENS if tokenizer is None else NOT_FOUND if place is None else EXPERT
    if tokenizer is None or place is None or part.expert is not None:
        return Lenses(Lens(None, nothing), Lens(None, nothing), tokenizer)
    own = share_weights(model)
    stream = stream_of(own.model, own.model.get_submodule(place.path), part, len(tokenizer))
    if stream.embedding is None:
        nothing = NO_TABLE if stream.ran else NOT_IN_TEXT
        return Lenses(Lens(None, nothing), Lens(None, nothing), tokenizer)
    return Lenses(_read_lens(stream, stream.embedding), _write_lens(stream, stream.embedding), tokenizer)


def _read_lens(stream: Stream, embedding: Tensor) -> Lens:
    if not stream.reads:
        return Lens(None, f"The read direction {ELSEWHERE}")
    how = "Compared with the token vectors of the input embedding"
    if stream.read_gain is None:
        return Lens(embedding, f"{how}.")
    return Lens(embedding, f"{how}, through the norm in front of the layer.", stream.read_gain.before)


def _write_lens(stream: Stream, embedding: Tensor) -> Lens:
    if stream.is_head:
        how = "The layer writes one number for each token, so the entries of its direction are tokens."
        return Lens(embedding, how, to_words=True)
    if not stream.writes:
        return Lens(None, f"The write direction {ELSEWHERE}")
    table = stream.head or Table(embedding)
    gains: tuple[Gain, ...] = stream.write_gains + ((table.gain,) if table.gain else ())
    passed = ", through the last norm" if table.gain else ""
    how = f"Compared with the token vectors of the {'output' if stream.head else 'input'} embedding{passed}."

    def carry(direction: Tensor) -> Tensor:
        for gain in gains:
            direction = gain.after(direction)
        return direction

    return Lens(table.vectors, how, carry)


def read_meaning(lenses: Lenses, direction: Tensor) -> Meaning:
    """The tokens that excite a read direction v (n,) most, positively and negatively."""
    return meaning(lenses.read, lenses.tokenizer, direction)


def write_meaning(lenses: Lenses, direction: Tensor) -> Meaning:
    """The tokens that a write direction u (m,) makes most and least likely."""
    return meaning(lenses.write, lenses.tokenizer, direction)


@torch.inference_mode()
def meaning(lens: Lens, tokenizer: Any, direction: Tensor) -> Meaning:
    """The N_SHOWN tokens with the highest and with the lowest scores.

    A token's score is its logit along the direction, without scale: the product of its vector, minus the mean of all
    vectors, with the unit direction after the norms, in units of the vectors' root mean square length. It is about a
    cosine. A true cosine would rank untrained tokens first, whose vectors are short and random.

    Args:
        lens: how the direction is compared.
        tokenizer: names the tokens.
        direction: (m,) or (n,).
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
    highest, lowest = (_top(tokenizer, scores, largest) for largest in (True, False))
    return Meaning(highest, lowest, lens.how)


def _top(tokenizer: Any, scores: Tensor, largest: bool) -> TokenScores:
    values, ids = scores.topk(min(N_SHOWN, len(scores)), largest=largest)
    return TokenScores(tuple(_word(tokenizer, token) for token in ids.tolist()), tuple(values.tolist()))


def _word(tokenizer: Any, token: int) -> str:
    """A token as text; if it is only part of a character, its name in the vocabulary."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return text if text.strip() and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))
