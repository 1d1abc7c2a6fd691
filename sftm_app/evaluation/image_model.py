"""What the families that read images share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import Answer, EvaluationModel, ForwardPass, best_option
from sftm_app.evaluation.samples import ImageSamples
from sftm_app.evaluation.tokens import batches

BATCH = 64
IMAGES_PER_PASS = 32
# The shares of red, green and blue in a grey image (ITU-R BT.601, as in Pillow's mode L).
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class ImageModel(EvaluationModel):
    """A model that reads images.

    Attributes:
        processor: the image processor of transformers.
        channels: 1 for grey images, 3 for colour.
    """

    processor: Any
    channels: int

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """The model's input, (n, channels, height, width), for uint8 (n, height, width) or (n, height, width, 3)."""
        if images.ndim == 4 and self.channels == 1:
            images = np.round(images @ LUMINANCE).astype(np.uint8)
        if images.ndim == 3:
            images = np.repeat(images[:, None], self.channels, axis=1)
        else:
            images = images.transpose(0, 3, 1, 2)
        prepared = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_first")
        pixels: Tensor = prepared["pixel_values"].to(self.model.device)
        return pixels

    @torch.inference_mode()
    def softmax_batches(
        self, images: NDArray[np.uint8], n_classes: int, logits: Callable[[Tensor], Tensor]
    ) -> NDArray[np.float32]:
        """Class probabilities, float32 (n, n_classes).

        Args:
            images: uint8 (n, height, width) or (n, height, width, 3).
            n_classes: how many classes there are.
            logits: gives the logits (batch, n_classes) for a batch of pixels.
        """
        found = [np.zeros((0, n_classes), np.float32)]
        for part in batches(range(len(images)), BATCH):
            found.append(logits(self.pixels(images[list(part)])).float().softmax(-1).cpu().numpy())
        return np.concatenate(found)

    def image_passes(
        self, images: NDArray[np.uint8], forward: Callable[[Tensor], object], config: Any
    ) -> Iterator[ForwardPass]:
        """Forward passes over images. config: that of the part of the model that reads them."""
        for numbers in batches(range(len(images)), IMAGES_PER_PASS):
            pixels = self.pixels(images[list(numbers)])
            height, width = pixels.shape[-2:]
            yield ForwardPass(numbers, partial(forward, pixels), patches=_patch_grid(config, height, width))


def _patch_grid(config: Any, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the patches that a model cuts an image into."""
    size = getattr(config, "patch_size", None)
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return height // sides[0], width // sides[1]


def class_answers(labels: tuple[str, ...], probabilities: NDArray[np.float32], samples: ImageSamples) -> list[Answer]:
    """The most probable class of each image.

    Args:
        labels: the classes.
        probabilities: float32 (n, classes).
        samples: the images, with the labels that are known.

    Raises:
        SampleError: a sample has a label beyond the classes.
    """
    highest = int(samples.labels.max(initial=-1))
    if highest >= len(labels):
        raise SampleError(f"A sample has the class number {highest}; the model knows {len(labels)} classes.")
    targets = [labels[label] if label >= 0 else None for label in samples.labels.tolist()]
    return [best_option(labels, row, target) for row, target in zip(probabilities.tolist(), targets, strict=True)]
