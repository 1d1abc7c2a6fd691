"""CLIP: images against class names. The head is made from the names by the text tower.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, section 3.1:
each name is put into every template, the normalised embeddings are averaged and normalised again.
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
from sftm_app.evaluation.building import build_model, load_processor, load_tokenizer, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_images
from sftm_app.evaluation.image_classifier import class_answers, pixel_values
from sftm_app.evaluation.reading import NO_SAMPLE, Reading, image_readings, text_readings
from sftm_app.evaluation.tokens import cut_rows, filler, padded

BATCH = 64
HEADS_KEPT = 8
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of a {}.")


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A whole CLIP model with its preprocessing and tokenizer. labels: classes for samples that bring none."""

    model: Any
    processor: Any
    tokenizer: Any
    labels: tuple[str, ...]
    # No argument: a copy with other weights must not take over heads that these weights made.
    _heads: LRUCache[tuple[str, ...], Tensor] = field(default_factory=lambda: LRUCache(HEADS_KEPT), init=False)

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable of samples.choices, or of its own labels. Raises SampleError: texts, or fewer than two."""
        images = as_images(samples)
        names = images.choices or self.labels
        if len(names) < 2:
            raise SampleError("CLIP chooses between names that you give: write at least two, such as cat, dog.")
        return class_answers(names, self.probabilities(images.images, names), images.labels)

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8], names: tuple[str, ...]) -> NDArray[np.float32]:
        """Probabilities, float32 (n, names), of uint8 images (n, height, width) or (n, height, width, 3)."""
        head = self.head(names)
        found = [self._batch(images[i : i + BATCH], head) for i in range(0, len(images), BATCH)]
        return np.concatenate(found) if found else np.zeros((0, len(names)), np.float32)

    def _batch(self, images: NDArray[np.uint8], head: Tensor) -> NDArray[np.float32]:
        embedded = normalised(self._see(self._pixels(images)))
        logits = self.model.logit_scale.exp() * embedded @ head.T
        result: NDArray[np.float32] = logits.float().softmax(-1).cpu().numpy()
        return result

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        return pixel_values(self.processor, images, 3).to(self.model.device)

    def _see(self, pixels: Tensor) -> Any:
        return self.model.get_image_features(pixel_values=pixels)

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes of the vision tower over the images, and of the text tower over names. Raises SampleError: texts."""
        images = as_images(samples)
        names = [TEMPLATES[0].format(name.replace("_", " ")) for name in images.choices or self.labels]
        rows = cut_rows(self.tokenizer, names, self._limit) if names else []
        numbers = [NO_SAMPLE] * len(rows)
        read = self.model.get_text_features
        return (
            image_readings(images.images, self._pixels, self._see, self.model.config.vision_config),
            text_readings(rows, numbers, read, self.model.device, filler(self.tokenizer)),
        )

    @property
    def _limit(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def head(self, names: tuple[str, ...]) -> Tensor:
        """Unit vectors, float32 (names, embedding), one for each class name."""
        known = self._heads.get(names)
        return known if known is not None else keep(self._heads, names, self._embed(names))

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        texts = [template.format(name.replace("_", " ")) for name in names for template in TEMPLATES]
        found = []
        for i in range(0, len(texts), BATCH):
            rows = cut_rows(self.tokenizer, texts[i : i + BATCH], self._limit)
            inputs = padded(rows, self.model.device, filler(self.tokenizer))
            found.append(normalised(self.model.get_text_features(**inputs)))
        by_name = torch.cat(found).reshape(len(names), len(TEMPLATES), -1)
        return normalised(by_name.mean(1))


def normalised(embedded: Any) -> Tensor:
    """Rows of unit length, of a tensor or of what transformers' towers return."""
    vectors: Tensor = embedded if isinstance(embedded, Tensor) else embedded.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)


def build(parts: Parts) -> ZeroShot:
    """A whole CLIP model; the classes that the config names, if any, are its labels.

    Raises
        SampleError: the weights do not cover both towers, or preprocessing or tokenizer are missing.
    """
    model = build_model(parts)
    named = parts.config.get("id2label")
    own = [str(label) for label in named.values()] if isinstance(named, dict) else []
    labels = () if any(label.startswith("LABEL_") for label in own) else tuple(own)
    return ZeroShot(model, load_processor(parts.folders), load_tokenizer(parts.folders), labels)


FAMILY = Family(
    "zero_shot",
    "CLIP models",
    "images",
    "Give an image and the names of classes; each model says which name suits it best.",
    lambda model_class, config: model_class.__name__ == "CLIPModel",
    build,
    choices="Class names",
    picks=True,
)
