"""Image classifiers: a backbone with a task's own head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.evaluation.building import build_model, load_processor
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts
from sftm_app.evaluation.image_model import ImageModel, class_answers
from sftm_app.evaluation.samples import Samples, as_images


@dataclass(frozen=True, eq=False)
class ImageClassifier(ImageModel):
    """An image classifier. labels: its classes by number."""

    labels: tuple[str, ...]

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable class of each image. Raises SampleError for texts and for labels beyond the classes."""
        images = as_images(samples)
        return class_answers(self.labels, self.probabilities(images.images), images)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 (n, classes), of uint8 images (n, height, width) or (n, height, width, 3)."""
        return self.softmax_batches(images, len(self.labels), lambda pixels: self._forward(pixels).logits)

    def _forward(self, pixels: Tensor) -> Any:
        return self.model(pixel_values=pixels)

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes over the images. Raises SampleError for texts."""
        return (self.image_passes(as_images(samples).images, self._forward, self.model.config),)


def build(parts: ModelParts) -> ImageClassifier:
    """Build a classifier.

    Raises:
        SampleError: the weights do not fit the class, or preprocessor_config.json is missing.
    """
    model = build_model(parts)
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    channels = int(getattr(model.config, "num_channels", 3))
    return ImageClassifier(model, None, load_processor(parts.folders), channels, labels)


FAMILY = Family(
    "image_classifier",
    "image classifiers",
    "images",
    "Give an image; each model names its class.",
    lambda model_class, config: model_class.__name__.endswith("ForImageClassification"),
    build,
)
