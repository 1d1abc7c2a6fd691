"""Encoders of sentences, such as all-MiniLM: which candidate is closest to a query.

Reimers and Gurevych, "Sentence-BERT", arXiv 1908.10084: a text is the pooled last hidden state of its tokens, two texts
are as similar as the cosine between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftm_app.errors import SampleError
from sftm_app.evaluation.building import build_model, load_tokenizer, parameter_bytes
from sftm_app.evaluation.family import Answer, Family, Parts, Samples, as_texts, scored
from sftm_app.evaluation.reading import TOKENS_READ, Reading, text_readings
from sftm_app.evaluation.tokens import batches, cut_rows, filler, padded, window

BATCH = 32
POOLING_NAME = "1_Pooling/config.json"
POOLINGS = ("mean", "cls", "max", "lasttoken")
# Sentence-transformers modules that the cosine of pooled states already covers.
COVERED = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """An encoder with its tokenizer; pooling: one of POOLINGS; limit: tokens read of a text at most."""

    model: Any
    tokenizer: Any
    pooling: str
    limit: int

    @property
    def n_bytes(self) -> int:
        return parameter_bytes(self.model)

    def answer(self, samples: Samples) -> list[Answer]:
        """The candidate closest to each query: one of samples.choices, or of the input's further lines.

        Raises
            SampleError: images, or a query without two candidates.
        """
        texts = as_texts(samples)
        asked = [split_query(text, texts.choices) for text in texts.inputs]
        different = tuple(dict.fromkeys(text for query, candidates in asked for text in (query, *candidates)))
        places = {text: number for number, text in enumerate(different)}
        embedded = self.embed(different)
        answers = []
        for (query, candidates), target in zip(asked, texts.targets, strict=True):
            cosines = embedded[[places[candidate] for candidate in candidates]] @ embedded[places[query]]
            answers.append(scored(candidates, cosines.tolist(), None if target is None else target.strip()))
        return answers

    def passes(self, samples: Samples) -> tuple[Iterator[Reading], ...]:
        """Passes over the queries, and over candidates that stand below them. Raises SampleError: images."""
        texts = as_texts(samples)
        lines = [(i, line) for i, text in enumerate(texts.inputs) for line in _lines(text, texts.choices)]
        said = [line for _, line in lines]
        rows = cut_rows(self.tokenizer, said, min(TOKENS_READ, self.limit)) if said else []
        numbers = [number for number, _ in lines]
        return (text_readings(rows, numbers, self.model, self.model.device, filler(self.tokenizer)),)

    @torch.inference_mode()
    def embed(self, texts: tuple[str, ...]) -> Tensor:
        """Unit vectors, float32 (n, hidden), on the CPU."""
        found = [torch.zeros(0, self.model.config.hidden_size)]
        for part in batches(texts, BATCH):
            rows = cut_rows(self.tokenizer, part, self.limit)
            inputs = padded(rows, self.model.device, filler(self.tokenizer))
            states = self.model(**inputs).last_hidden_state
            pooled = pool(states, inputs["attention_mask"], self.pooling)
            found.append((pooled / pooled.norm(dim=-1, keepdim=True)).float().cpu())
        return torch.cat(found)


def split_query(text: str, choices: tuple[str, ...] | None) -> tuple[str, tuple[str, ...]]:
    """A query and its candidates: the choices, or where there are none the further lines of the text.

    Raises
        SampleError: there are fewer than two candidates.
    """
    if choices is not None:
        return text.strip(), tuple(choice.strip() for choice in choices)
    lines = _lines(text, choices)
    candidates = tuple(dict.fromkeys(lines[1:]))
    if len(candidates) < 2:
        raise SampleError("Write the query into the first line and at least two candidates, each into a line below.")
    return lines[0], candidates


def _lines(text: str, choices: tuple[str, ...] | None) -> list[str]:
    """A text that has its choices, or its lines."""
    return [text.strip()] if choices is not None else [line.strip() for line in text.splitlines() if line.strip()]


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a text, (n, hidden), of states (n, tokens, hidden) and mask (n, tokens), one of POOLINGS."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    outside = mask[..., None] == 0
    if pooling == "max":
        return states.masked_fill(outside, -torch.inf).amax(1)
    return states.masked_fill(outside, 0).sum(1) / mask.sum(1, keepdim=True)


def read_pooling(folder: Path) -> str:
    """How a folder of sentence-transformers pools; the mean where it says nothing.

    Raises
        SampleError: in a way that is not known here, or with further modules behind the pooling.
    """
    modules = _read(folder / "modules.json") or []
    others = [str(m.get("type")) for m in modules if not str(m.get("type")).endswith(COVERED)]
    if others:
        raise SampleError(f"{folder}: puts {', '.join(others)} behind the encoder, which cannot be tried here.")
    said = _read(folder / POOLING_NAME) or {}
    # Older folders hold one flag for each way, newer ones its name.
    old = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "lasttoken"}
    flags = [key.removeprefix("pooling_mode_") for key, on in said.items() if key.startswith("pooling_mode_") and on]
    named = said.get("pooling_mode", [old.get(flag, flag) for flag in flags] or "mean")
    ways = named if isinstance(named, list) else [named]
    if len(ways) != 1 or ways[0] not in POOLINGS:
        found = ", ".join(map(str, ways))
        raise SampleError(f"{folder / POOLING_NAME}: pools by {found}; known are {', '.join(POOLINGS)}.")
    return str(ways[0])


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise SampleError(f"{file}: cannot be read as JSON. Download it again.") from None


def build(parts: Parts) -> SentenceEncoder:
    """A bare encoder, with the pooling of the first folder that says how.

    Raises
        SampleError: the weights do not cover it, it has no tokenizer, or its pooling is not known.
    """
    model = build_model(parts, unused=("pooler.",))
    tokenizer = load_tokenizer(parts.folders)
    folder = next((f for f in parts.folders if (f / POOLING_NAME).is_file()), parts.folders[-1])
    asked = (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    limit = window(model, tokenizer)
    return SentenceEncoder(model, tokenizer, read_pooling(folder), min(limit, asked) if asked else limit)


def _is_text_encoder(model_class: Any, config: Any) -> bool:
    encodes = model_class.__name__.endswith("EncoderModel") or not getattr(config, "is_encoder_decoder", False)
    reads = getattr(model_class, "main_input_name", "") == "input_ids" and hasattr(config, "vocab_size")
    return model_class.__name__.endswith("Model") and encodes and reads


FAMILY = Family(
    "sentence_encoder",
    "sentence encoders",
    "text",
    "Write a query into the first line and candidates into the lines below; each model says which is closest.",
    _is_text_encoder,
    build,
    scores="cosine similarity",
    picks=True,
)
