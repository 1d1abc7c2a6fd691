"""Image classifiers: a merged backbone with a task's own head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_processor, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_images
from sftm_app.evaluation.reading import Reading, image_readings

BATCH = 256
# What a gray picture takes of red, green and blue (ITU-R BT.601, as Pillow's mode L).
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A model ready to classify, with its preprocessing and its class names by index."""

    model: Any
    processor: Any
    labels: tuple[str, ...]
    channels: int
    tokenizer: None = field(default=None, init=False)

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable class of each image. Raises SampleError: texts, or labels beyond the model's classes."""
        images = as_images(samples)
        return class_answers(self.labels, self.probabilities(images.images), images.labels)

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 (n, classes), of uint8 images (n, height, width) or (n, height, width, 3)."""
        found = [self._batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), np.float32)

    def _batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = self._forward(self._pixels(images)).logits.float().softmax(-1).cpu().numpy()
        return result

    def _pixels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return pixel_values(self.processor, images, self.channels).to(self.model.device, self.model.dtype)

    def _forward(self, pixels: torch.Tensor) -> Any:
        return self.model(pixel_values=pixels)

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes over the images. Raises SampleError: texts."""
        return (image_readings(as_images(samples).images, self._pixels, self._forward, self.model.config),)


def pixel_values(processor: Any, images: NDArray[np.uint8], channels: int) -> torch.Tensor:
    """Images uint8 (n, height, width) or (n, height, width, 3) as a model with 1 or 3 channels reads them."""
    if images.ndim == 4 and channels == 1:
        images = np.round(images @ LUMINANCE).astype(np.uint8)
    if images.ndim == 3:
        images = images[:, None] if channels == 1 else np.repeat(images[:, None], 3, axis=1)
    else:
        images = images.transpose(0, 3, 1, 2)
    found: torch.Tensor = processor(images=list(images), return_tensors="pt", input_data_format="channels_first")[
        "pixel_values"
    ]
    return found


def class_answers(
    labels: tuple[str, ...], probabilities: NDArray[np.float32], truths: NDArray[np.int64]
) -> list[Answer]:
    """The most probable of the classes for each row of float32 (n, classes); truths: int64 (n,), -1 where not known.

    Raises
        SampleError: a label that is no class.
    """
    if len(truths) and truths.max() >= len(labels):
        raise SampleError(f"A sample has the class number {truths.max()}; the model knows {len(labels)} classes.")
    best = probabilities.argmax(1)
    return [
        Answer(
            labels[said],
            labels,
            tuple(row.tolist()),
            labels[truth] if truth >= 0 else None,
            bool(said == truth) if truth >= 0 else None,
        )
        for said, row, truth in zip(best, probabilities, truths, strict=True)
    ]


def build(parts: Parts) -> ImageClassifier:
    """A classifier from a task's config.json and weights.

    Raises
        SampleError: the weights do not cover it, or preprocessor_config.json is missing.
    """
    model = build_model(parts)
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    channels = int(getattr(model.config, "num_channels", 3))
    return ImageClassifier(model, load_processor(parts.folders), labels, channels)


FAMILY = Family(
    "image_classifier",
    "image classifiers",
    "images",
    "Give an image; each model says which class it shows.",
    lambda model_class, config: model_class.__name__.endswith("ForImageClassification"),
    build,
)
