"""Forward passes over samples, and what each row of a layer's input stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# How many tokens of a text are looked at: enough to see what excites a layer, and a bound on the time.
MAX_TOKENS_PER_PASS = 512
TEXTS_PER_PASS = 16
IMAGES_PER_PASS = 32
# The sample number of a text that is not a sample, such as the name of a class.
NO_SAMPLE = -1


@dataclass(frozen=True)
class TokenBatch:
    """A batch of token sequences that a model reads.

    Attributes:
        ids: the token ids of each row, without padding.
        length: of every row, with padding.
        title: which sequence this is, for a model that reads two.
    """

    ids: Sequence[Sequence[int]]
    length: int
    title: str = ""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass over a batch.

    Attributes:
        samples: the sample number of each row of the batch, or NO_SAMPLE.
        run: does the pass.
        sequences: the tokens that a text model reads.
        patches: rows and columns of the patches that an image is cut into; None if the model cuts none.
    """

    samples: Sequence[int]
    run: Callable[[], object]
    sequences: tuple[TokenBatch, ...] = ()
    patches: tuple[int, int] | None = None
