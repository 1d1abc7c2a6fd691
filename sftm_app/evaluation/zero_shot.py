"""CLIP models, which compare images with class names.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, section
3.1.4: each name is put into every template; the normalised text embeddings are averaged and normalised again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

from sftm_app.caching import keep
from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_processor, load_tokenizer
from sftm_app.evaluation.family import NO_SAMPLE, Answer, Family, ForwardPass, ModelParts
from sftm_app.evaluation.image_model import ImageModel, class_answers
from sftm_app.evaluation.samples import Samples, as_images
from sftm_app.evaluation.text_model import TextModel
from sftm_app.evaluation.tokens import batches

TEXT_BATCH = 64
HEADS_CACHED = 8
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of a {}.")


@dataclass(frozen=True, eq=False)
class ZeroShot(ImageModel, TextModel):
    """A whole CLIP model. labels: the classes of samples that bring none."""

    labels: tuple[str, ...]
    # init=False: a copy with other weights starts with an empty cache.
    _heads: LRUCache[tuple[str, ...], Tensor] = field(default_factory=lambda: LRUCache(HEADS_CACHED), init=False)

    @property
    def max_tokens(self) -> int:
        """How many tokens the text tower reads at most."""
        return int(self.model.config.text_config.max_position_embeddings)

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable class name for each image.

        Raises:
            SampleError: the samples are texts, or there are fewer than two names.
        """
        images = as_images(samples)
        names = images.choices or self.labels
        if len(names) < 2:
            raise SampleError("CLIP chooses between the names that you give: write at least two, such as cat, dog.")
        return class_answers(names, self.probabilities(images.images, names), images)

    def probabilities(self, images: NDArray[np.uint8], names: tuple[str, ...]) -> NDArray[np.float32]:
        """Probabilities, float32 (n, names), of uint8 images (n, height, width) or (n, height, width, 3)."""
        head = self.head(names)

        def logits(pixels: Tensor) -> Tensor:
            found: Tensor = self.model.logit_scale.exp() * normalised(self._image_features(pixels)) @ head.T
            return found

        return self.softmax_batches(images, len(names), logits)

    def _image_features(self, pixels: Tensor) -> Any:
        return self.model.get_image_features(pixel_values=pixels)

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes of the vision tower over the images and of the text tower over the names.

        Raises:
            SampleError: the samples are texts.
        """
        images = as_images(samples)
        names = [TEMPLATES[0].format(name.replace("_", " ")) for name in images.choices or self.labels]
        rows = self.encode(names, self.max_tokens)
        return (
            self.image_passes(images.images, self._image_features, self.model.config.vision_config),
            self.text_passes(rows, [NO_SAMPLE] * len(rows), self.model.get_text_features),
        )

    @torch.inference_mode()
    def head(self, names: tuple[str, ...]) -> Tensor:
        """Unit vectors, float32 (names, embedding), one for each class name."""
        known = self._heads.get(names)
        return known if known is not None else keep(self._heads, names, self._embed(names))

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        texts = [template.format(name.replace("_", " ")) for name in names for template in TEMPLATES]
        inputs = (self.pad(self.encode(part, self.max_tokens)) for part in batches(texts, TEXT_BATCH))
        found = torch.cat([normalised(self.model.get_text_features(**batch)) for batch in inputs])
        return normalised(found.reshape(len(names), len(TEMPLATES), -1).mean(1))


def normalised(features: Any) -> Tensor:
    """Rows of unit length. features: a tensor, or what the towers of transformers return."""
    vectors: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


def build(parts: ModelParts) -> ZeroShot:
    """Build a whole CLIP model. Its labels are the classes that its config names, if any.

    Raises:
        SampleError: the weights do not cover both towers, or the preprocessing or the tokenizer is missing.
    """
    named = parts.config.get("id2label")
    own = [str(label) for label in named.values()] if isinstance(named, dict) else []
    labels = () if any(label.startswith("LABEL_") for label in own) else tuple(own)
    return ZeroShot(build_model(parts), load_tokenizer(parts.folders), load_processor(parts.folders), 3, labels)


FAMILY = Family(
    "zero_shot",
    "CLIP models",
    "images",
    "Give an image and the names of classes; each model chooses the name that fits best.",
    lambda model_class, config: model_class.__name__ == "CLIPModel",
    build,
    choices="Class names",
    picks=True,
)
