"""Sentence encoders such as all-MiniLM, which find the candidate closest to a query.

Reimers and Gurevych, "Sentence-BERT", arXiv 1908.10084: the embedding of a text is the pooled last hidden state of its
tokens; the similarity of two texts is the cosine of their embeddings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer
from sftm_app.evaluation.family import Answer, Family, ForwardPass, ModelParts, best_option
from sftm_app.evaluation.samples import Samples, as_texts
from sftm_app.evaluation.text_model import MAX_TOKENS, MAX_TOKENS_PER_PASS, TextModel
from sftm_app.evaluation.tokens import batches
from sftm_app.weights.regular import read_file
from sftm_app.weights.shards import refuse_foreign_link

BATCH = 32
POOLING_NAME = "1_Pooling/config.json"
POOLINGS = ("mean", "cls", "max", "lasttoken")
# The modules of sentence-transformers that pooling and the cosine already cover.
COVERED = ("Transformer", "Pooling", "Normalize")
# Older folders set one flag per pooling, with these names.
OLD_NAMES = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "lasttoken"}
Content = TypeVar("Content", dict[str, Any], list[Any])


@dataclass(frozen=True, eq=False)
class SentenceEncoder(TextModel):
    """A sentence encoder.

    Attributes:
        pooling: one of POOLINGS.
        own_limit: how many tokens of a text sentence-transformers would read; None for as many as the model reads.
    """

    pooling: str
    own_limit: int | None = None

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read at most."""
        return min(super().max_tokens, self.own_limit or MAX_TOKENS)

    def answer(self, samples: Samples) -> list[Answer]:
        """The candidate closest to each query: one of samples.choices, or of the lines below the query.

        Raises:
            SampleError: the samples are images, or a query has fewer than two candidates.
        """
        texts = as_texts(samples)
        queries = [split_query(text, texts.choices) for text in texts.inputs]
        unique = tuple(dict.fromkeys(text for query, candidates in queries for text in (query, *candidates)))
        embedded = dict(zip(unique, self.embed(unique), strict=True))
        answers = []
        for (query, candidates), target in zip(queries, texts.targets, strict=True):
            cosines = torch.stack([embedded[candidate] for candidate in candidates]) @ embedded[query]
            answers.append(best_option(candidates, cosines.tolist(), None if target is None else target.strip()))
        return answers

    def passes(self, samples: Samples) -> tuple[Iterator[ForwardPass], ...]:
        """Passes over the queries, and over the candidates below them. Raises SampleError for images."""
        texts = as_texts(samples)
        lines = [(i, line) for i, text in enumerate(texts.inputs) for line in _lines(text, texts.choices)]
        rows = self.encode([line for _, line in lines], min(MAX_TOKENS_PER_PASS, self.max_tokens))
        return (self.text_passes(rows, [i for i, _ in lines]),)

    @torch.inference_mode()
    def embed(self, texts: tuple[str, ...]) -> Tensor:
        """Unit vectors, float32 (n, hidden), on the CPU."""
        found = [torch.zeros(0, self.model.config.hidden_size)]
        for part in batches(self.encode(texts, self.max_tokens), BATCH):
            inputs = self.pad(part)
            pooled = pool(self.model(**inputs).last_hidden_state, inputs["attention_mask"], self.pooling)
            found.append((pooled / pooled.norm(dim=-1, keepdim=True)).float().cpu())
        return torch.cat(found)


def split_query(text: str, choices: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    """A query and its candidates: the choices, or the lines below the first one.

    Raises:
        SampleError: there are fewer than two candidates.
    """
    if choices is not None:
        return text.strip(), tuple(choice.strip() for choice in choices)
    lines = _lines(text, choices)
    candidates = tuple(dict.fromkeys(lines[1:]))
    if len(candidates) < 2:
        raise SampleError("Write the query in the first line and at least two candidates below it, one per line.")
    return lines[0], candidates


def _lines(text: str, choices: tuple[str, ...] | None) -> list[str]:
    """The lines of a text; all of it where the candidates are given apart."""
    return [text.strip()] if choices is not None else [line.strip() for line in text.splitlines() if line.strip()]


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per text.

    Args:
        states: hidden states (n, tokens, hidden).
        mask: attention mask (n, tokens), 0 for padding at the end.
        pooling: one of POOLINGS.

    Returns:
        (n, hidden).
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    outside = mask[..., None] == 0
    if pooling == "max":
        return states.masked_fill(outside, -torch.inf).amax(1)
    return states.masked_fill(outside, 0).sum(1) / mask.sum(1, keepdim=True)


def read_pooling(folder: Path) -> str:
    """The pooling that a folder of sentence-transformers names; "mean" if it names none.

    Raises:
        SampleError: the pooling is not supported, or further modules follow it.
    """
    modules = _read(folder, "modules.json", [])
    kinds = [str(module.get("type") if isinstance(module, dict) else module) for module in modules]
    others = [kind for kind in kinds if not kind.endswith(COVERED)]
    if others:
        raise SampleError(f"{folder}: applies {', '.join(others)} after the encoder, which is not supported here.")
    said = _read(folder, POOLING_NAME, {})
    flags = [key.removeprefix("pooling_mode_") for key, on in said.items() if key.startswith("pooling_mode_") and on]
    named = said.get("pooling_mode", [OLD_NAMES.get(flag, flag) for flag in flags] or "mean")
    poolings = named if isinstance(named, list) else [named]
    if len(poolings) != 1 or poolings[0] not in POOLINGS:
        found = ", ".join(map(str, poolings))
        raise SampleError(f"{folder / POOLING_NAME}: pools by {found}; supported are {', '.join(POOLINGS)}.")
    return str(poolings[0])


def _read(folder: Path, name: str, default: Content) -> Content:
    """The content of a JSON file, of the type of `default`, which stands for a missing file."""
    file = folder / name
    if not file.is_file():
        return default
    try:
        refuse_foreign_link(file, folder)
        content = json.loads(read_file(file))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, type(default)):
        kind = "list" if isinstance(default, list) else "object"
        raise SampleError(f"{file}: cannot be read as a JSON {kind}. Download it again.")
    return content


def build(parts: ModelParts) -> SentenceEncoder:
    """Build an encoder, with the pooling of the first folder that names one.

    Raises:
        SampleError: the weights do not fit the class, the tokenizer is missing, or the pooling is not supported.
    """
    model = build_model(parts, optional=("pooler.",))
    folder = next((f for f in parts.folders if (f / POOLING_NAME).is_file()), parts.folders[-1])
    limit = _read(folder, "sentence_bert_config.json", {}).get("max_seq_length")
    own_limit = limit if isinstance(limit, int) and limit > 0 else None
    return SentenceEncoder(model, load_tokenizer(parts.folders), read_pooling(folder), own_limit)


def _is_text_encoder(model_class: Any, config: Any) -> bool:
    encodes = model_class.__name__.endswith("EncoderModel") or not getattr(config, "is_encoder_decoder", False)
    reads = getattr(model_class, "main_input_name", "") == "input_ids" and hasattr(config, "vocab_size")
    return model_class.__name__.endswith("Model") and encodes and reads


FAMILY = Family(
    "sentence_encoder",
    "sentence encoders",
    "text",
    "Write a query in the first line and candidates below it, one per line; each model finds the closest.",
    _is_text_encoder,
    build,
    scores="cosine similarity",
    picks=True,
)
