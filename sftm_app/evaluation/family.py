"""What a model family is: a kind of model that can be tried.

A family is one file with a subclass of EvaluationModel, a build function and a constant FAMILY, plus one line in
`families.FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import Samples

# The sample number of a text that is not a sample, such as the name of a class.
NO_SAMPLE = -1


@dataclass(frozen=True)
class Answer:
    """What one model answers to one sample.

    Attributes:
        text: a class, a choice, a candidate, or the text that the model wrote.
        options: what the model chose from; empty if it wrote freely.
        scores: one score for each option.
        target: the correct answer, None if it is not known.
        correct: whether `text` is the correct answer, None if that is not known.
    """

    text: str
    options: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    target: str | None = None
    correct: bool | None = None


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


@dataclass(frozen=True, eq=False)
class EvaluationModel(ABC):
    """A model that is ready to be tried.

    Attributes:
        model: the model of transformers.
        tokenizer: its tokenizer; None for a model that reads no text.
    """

    model: Any
    tokenizer: Any

    @property
    def n_bytes(self) -> int:
        """The size of its parameters."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @abstractmethod
    def answer(self, samples: Samples) -> list[Answer]:
        """One answer to each sample.

        Raises:
            SampleError: the model cannot read these samples, or they lack something that it needs.
        """

    @abstractmethod
    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Forward passes over the samples, one iterator for each part of the model that reads on its own.

        Raises:
            SampleError: as `answer`.
        """


@dataclass(frozen=True)
class ModelParts:
    """What a model is built from.

    Attributes:
        class_name: its class in transformers.
        config: its config.json.
        tensors: all of its weights, by their names in the files of a checkpoint of this class.
        folders: where to look for its tokenizer and preprocessing, in this order.
        device: where it runs.
    """

    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    folders: tuple[Path, ...]
    device: torch.device


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        name: its key.
        title: its name in the plural.
        reads: what its samples are.
        hint: what to give the models.
        fits: whether a class of transformers, with its config, belongs to the family.
        build: makes a model from its parts. Raises SampleError if the parts do not suffice.
        scores: what Answer.scores are.
        choices: the label of the choices that a person may write; empty if the models take none.
        picks: whether the models always choose and have no classes of their own. A labelled set then offers all of its
            targets as choices.
        writes: whether the models generate text, which is slow.
        chats: whether the tokenizer may have a chat template.
    """

    name: str
    title: str
    reads: Literal["images", "text"]
    hint: str
    fits: Callable[[type, Any], bool]
    build: Callable[[ModelParts], EvaluationModel]
    scores: Literal["probability", "cosine similarity"] = "probability"
    choices: str = ""
    picks: bool = False
    writes: bool = False
    chats: bool = False


def best_option(options: Sequence[str], scores: Sequence[float], target: str | None) -> Answer:
    """The answer of a model that chooses the option with the highest score.

    Raises:
        SampleError: the target is not one of the options.
    """
    if target is not None and target not in options:
        shown = ", ".join(options[:8])
        raise SampleError(f"The correct answer {target!r} is not one of the options ({shown}, ...).")
    text = options[max(range(len(scores)), key=scores.__getitem__)]
    return Answer(text, tuple(options), tuple(scores), target, None if target is None else text == target)
