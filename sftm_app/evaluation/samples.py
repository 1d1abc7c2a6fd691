"""Inputs to try models on: images with labels, or texts with targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sftm_app.errors import SampleError


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """Images and their labels.

    Attributes:
        images: uint8 (n, height, width) or (n, height, width, 3).
        labels: int64 (n,), -1 where the label is not known.
        choices: class names, for models that have no classes of their own.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    choices: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, n: int) -> list[int]:
        """Positions of at most `n` samples, see `balanced`."""
        return balanced(self.labels.tolist(), n)

    def subset(self, n: int) -> ImageSamples:
        """At most `n` samples, see `balanced`."""
        return self.take(self.spread(n))

    def take(self, positions: list[int]) -> ImageSamples:
        """The samples at these positions."""
        return replace(self, images=self.images[positions], labels=self.labels[positions])


@dataclass(frozen=True)
class TextSamples:
    """Texts and the answers that are expected.

    Attributes:
        inputs: the texts.
        targets: the correct answer to each text, None where it is not known.
        choices: the answers to choose from; None where the model writes freely or has its own classes.
        chat: whether each input is a message for the tokenizer's chat template.
    """

    inputs: tuple[str, ...]
    targets: tuple[str | None, ...]
    choices: tuple[str, ...] | None = None
    chat: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def spread(self, n: int) -> list[int]:
        """Positions of at most `n` samples, see `balanced`."""
        return balanced(self.targets, n)

    def subset(self, n: int) -> TextSamples:
        """At most `n` samples, see `balanced`."""
        return self.take(self.spread(n))

    def take(self, positions: list[int]) -> TextSamples:
        """The samples at these positions."""
        inputs, targets = self.inputs, self.targets
        return replace(self, inputs=tuple(inputs[i] for i in positions), targets=tuple(targets[i] for i in positions))


Samples: TypeAlias = ImageSamples | TextSamples


def balanced(classes: Iterable[Hashable], n: int) -> list[int]:
    """Choose samples evenly over the classes: the first of every class, then the second, and so on.

    The first `n` of a set would often be a few classes only, because sets are often stored class by class.

    Args:
        classes: the class of each sample.
        n: how many samples to choose at most.

    Returns:
        The positions of the chosen samples, ascending; the same ones on every call.
    """
    seen: Counter[Hashable] = Counter()
    rounds = []
    for one in classes:
        rounds.append(seen[one])
        seen[one] += 1
    return sorted(sorted(range(len(rounds)), key=rounds.__getitem__)[:n])


def targets_of(samples: Samples) -> tuple[str | None, ...]:
    """The correct answers as texts; of images, the numbers of their classes, or the names of the choices."""
    if isinstance(samples, TextSamples):
        return samples.targets
    names = samples.choices
    return tuple(None if i < 0 else names[i] if names else str(i) for i in samples.labels.tolist())


def as_images(samples: Samples) -> ImageSamples:
    """The samples of a model that reads images. Raises SampleError for texts."""
    if not isinstance(samples, ImageSamples):
        raise SampleError("This model reads images; these samples are texts.")
    return samples


def as_texts(samples: Samples) -> TextSamples:
    """The samples of a model that reads text. Raises SampleError for images."""
    if not isinstance(samples, TextSamples):
        raise SampleError("This model reads text; these samples are images.")
    return samples
