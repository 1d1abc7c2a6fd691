"""Text classifiers: BERT, RoBERTa, DistilBERT, GPT-2 and others with a classification head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts, best_option
from sftm_app.evaluation.samples import Samples, as_texts
from sftm_app.evaluation.text_model import MAX_TOKENS_PER_PASS, TEXTS_PER_PASS, TextModel
from sftm_app.evaluation.tokens import batches

BATCH = 32


@dataclass(frozen=True, eq=False)
class TextClassifier(TextModel):
    """A text classifier. labels: its classes by number."""

    labels: tuple[str, ...]

    @property
    def pad_id(self) -> int:
        """The padding token. It is the config's, because the model looks for it to find the end of a text."""
        own = self.model.config.pad_token_id
        return super().pad_id if own is None else int(own)

    def answer(self, samples: Samples) -> list[Answer]:
        """The most probable class of each text. Texts that are too long are truncated.

        Raises:
            SampleError: the samples are images, or a target is not a class.
        """
        texts = as_texts(samples)
        rows = self.probabilities(texts.inputs).tolist()
        return [best_option(self.labels, row, self._class(t)) for row, t in zip(rows, texts.targets, strict=True)]

    def _class(self, target: str | None) -> str | None:
        """The class that a target means: a name, or the number of a class."""
        if target is None or target in self.labels:
            return target
        number = int(target) if target.isascii() and target.isdigit() else len(self.labels)
        return self.labels[number] if number < len(self.labels) else target

    @torch.inference_mode()
    def probabilities(self, texts: tuple[str, ...]) -> Tensor:
        """Class probabilities, float32 (n, classes), on the CPU."""
        found = [torch.zeros(0, len(self.labels))]
        for part in batches(self.encode(texts, self.max_tokens), self._batch_size(BATCH)):
            found.append(self.model(**self.pad(part)).logits.float().softmax(-1).cpu())
        return torch.cat(found)

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes over the texts, truncated to what the model reads. Raises SampleError for images."""
        rows = self.encode(as_texts(samples).inputs, min(MAX_TOKENS_PER_PASS, self.max_tokens))
        return (self.text_passes(rows, range(len(rows)), size=self._batch_size(TEXTS_PER_PASS)),)

    def _batch_size(self, size: int) -> int:
        # Without a padding token the model cannot tell where a text of a batch ends (GPT-2 classifies its last token).
        return size if self.model.config.pad_token_id is not None else 1


def build(parts: ModelParts) -> TextClassifier:
    """Build a classifier.

    Raises:
        SampleError: the weights do not fit the class, the tokenizer is missing, or the model does not choose one class.
    """
    model = build_model(parts)
    config = model.config
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise SampleError(
            f"{parts.folders[0]}: does not choose one of several classes (num_labels {config.num_labels}, problem_type "
            f"{config.problem_type}), so its answers cannot be compared."
        )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return TextClassifier(model, load_tokenizer(parts.folders), labels)


FAMILY = Family(
    "text_classifier",
    "text classifiers",
    "text",
    "Write a text; each model names its class. Long texts are truncated to what the model reads.",
    lambda model_class, config: model_class.__name__.endswith("ForSequenceClassification"),
    build,
)
