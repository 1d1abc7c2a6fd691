"""What a model family is: a kind of model that can be tried, built from parts, with answers that all look alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.reading import Reading
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.evaluation.texts import TextSamples

Samples = ImageSamples | TextSamples


@dataclass(frozen=True)
class Answer:
    """What one model says to one sample.

    said: a class, a choice, a candidate, or the text that it wrote.
    options, scores: what it chose between, and how much speaks for each; empty where it wrote freely.
    truth: the right answer, None where it is not known; right: whether it was said.
    """

    said: str
    options: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    truth: str | None = None
    right: bool | None = None


class EvaluationModel(Protocol):
    """A model that is ready to be tried: a frozen dataclass with the field `model`."""

    @property
    def model(self) -> Any:
        """The model of transformers itself."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; None where it reads no text."""

    @property
    def n_bytes(self) -> int:
        """What it takes of memory."""

    def answer(self, samples: Samples) -> list[Answer]:
        """One answer a sample.

        Raises
            SampleError: the samples are not of the kind that the model reads, or lack what it needs.
        """

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Forward passes over the samples, for looking at layers: one iterator for each part that reads on its own.

        Raises
            SampleError: as answer().
        """


@dataclass(frozen=True)
class Parts:
    """What a model is built from.

    class_name, config: the class in transformers and its config.json.
    tensors: a whole set of weights, under the names of the files of a checkpoint of that class.
    folders: where its tokenizer and preprocessing are looked for, in this order.
    """

    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    folders: tuple[Path, ...]
    device: torch.device


@dataclass(frozen=True)
class Family:
    """A kind of model.

    title: what it is called, in the plural. hint: what to give it.
    fits: whether a class of transformers, with its config, is of this kind.
    scores: what Answer.scores are. choices: the name of the choices that are asked for; empty where none are.
    picks: it always chooses and has no classes of its own, so that a labelled set offers all its targets.
    writes: it writes word by word, which is slow. chats: its tokenizer may have a chat template.
    """

    name: str
    title: str
    reads: Literal["images", "text"]
    hint: str
    fits: Callable[[type, Any], bool]
    build: Callable[[Parts], EvaluationModel]
    scores: Literal["probability", "cosine similarity"] = "probability"
    choices: str = ""
    picks: bool = False
    writes: bool = False
    chats: bool = False


def accuracy(model: EvaluationModel, samples: Samples) -> float:
    """The share of samples that are answered rightly, 0..1.

    Raises
        SampleError: there are none, or the right answer of one is not known.
    """
    answers = model.answer(samples)
    if not answers or any(answer.right is None for answer in answers):
        raise SampleError("Accuracy needs samples whose right answers are all known.")
    return sum(bool(answer.right) for answer in answers) / len(answers)


def scored(options: Sequence[str], scores: Sequence[float], truth: str | None) -> Answer:
    """The answer of a model that chooses the option of the highest score.

    Raises
        SampleError: the right answer is none of the options.
    """
    if truth is not None and truth not in options:
        shown = ", ".join(options[:8])
        raise SampleError(f"The right answer {truth!r} is none of the answers to choose from ({shown}, ...).")
    said = options[max(range(len(scores)), key=scores.__getitem__)]
    return Answer(said, tuple(options), tuple(scores), truth, None if truth is None else said == truth)


def as_images(samples: Samples) -> ImageSamples:
    """The samples, of a model that reads images.

    Raises
        SampleError: they are texts.
    """
    if not isinstance(samples, ImageSamples):
        raise SampleError("This model reads images; these samples are texts.")
    return samples


def as_texts(samples: Samples) -> TextSamples:
    """The samples, of a model that reads text.

    Raises
        SampleError: they are images.
    """
    if not isinstance(samples, TextSamples):
        raise SampleError("This model reads text; these samples are images.")
    return samples
