"""Text classifiers: BERT, RoBERTa, DistilBERT, GPT-2 and others with a head for whole texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_texts, scored
from sftm_app.evaluation.reading import TEXTS_AT_ONCE, TOKENS_READ, Reading, text_readings
from sftm_app.evaluation.tokens import batches, cut_rows, filler, padded, window

BATCH = 32


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A model ready to classify texts, with its tokenizer and its class names by index."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable class of each text. Raises SampleError: images, or a target that is no class."""
        texts = as_texts(samples)
        rows = self.probabilities(texts.inputs).tolist()
        return [scored(self.labels, row, self._class(t)) for row, t in zip(rows, texts.targets, strict=True)]

    def _class(self, target: str | None) -> str | None:
        """A class may be given by its number; a name counts first."""
        if target in self.labels or target is None:
            return target
        number = int(target) if target.isascii() and target.isdigit() else len(self.labels)
        return self.labels[number] if number < len(self.labels) else target

    @torch.inference_mode()
    def probabilities(self, texts: tuple[str, ...]) -> NDArray[np.float32]:
        """Class probabilities, float32 (n, classes). Texts longer than the model reads are cut at their end."""
        rows = cut_rows(self.tokenizer, texts, window(self.model, self.tokenizer)) if texts else []
        # Without a padding token a model does not know where a text of a batch ends (GPT-2 reads its last token).
        size = BATCH if self.model.config.pad_token_id is not None else 1
        found = [self._batch(part) for part in batches(rows, size)]
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), np.float32)

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes over the texts, cut where the model ends. Raises SampleError: images."""
        texts = as_texts(samples).inputs
        limit = min(TOKENS_READ, window(self.model, self.tokenizer))
        rows = cut_rows(self.tokenizer, texts, limit) if texts else []
        size = TEXTS_AT_ONCE if self.model.config.pad_token_id is not None else 1
        return (text_readings(rows, range(len(rows)), self.model, self.model.device, self._fill, size),)

    @property
    def _fill(self) -> int:
        fill = self.model.config.pad_token_id
        return filler(self.tokenizer) if fill is None else int(fill)

    def _batch(self, rows: Any) -> NDArray[np.float32]:
        inputs = padded(rows, self.model.device, self._fill)
        result: NDArray[np.float32] = self.model(**inputs).logits.float().softmax(-1).cpu().numpy()
        return result


def build(parts: Parts) -> TextClassifier:
    """A classifier from a task's config.json and weights.

    Raises
        SampleError: the weights do not cover it, it has no tokenizer, or it does not choose one of several classes.
    """
    model = build_model(parts)
    config = model.config
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise SampleError(
            f"{parts.folders[0]}: does not choose one of several classes (num_labels {config.num_labels}, problem_type "
            f"{config.problem_type}), so its answers cannot be compared here."
        )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return TextClassifier(model, load_tokenizer(parts.folders), labels)


FAMILY = Family(
    "text_classifier",
    "text classifiers",
    "text",
    "Write a text; each model says which class it belongs to. Long texts are cut at the end of what a model reads.",
    lambda model_class, config: model_class.__name__.endswith("ForSequenceClassification"),
    build,
)
