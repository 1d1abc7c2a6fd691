"""Texts as rows of token numbers, and rows as batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MAX_TOKENS = 4096
Item = TypeVar("Item")


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in their order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def window(model: Any, tokenizer: Any) -> int:
    """How many tokens a model reads at most; MAX_TOKENS where nothing limits it sooner."""
    limits = [MAX_TOKENS, tokenizer.model_max_length]
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind its padding token, so its table is longer than what it reads.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return int(min(limits))


def cut_rows(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Each text's tokens with the special ones; a text longer than `limit` tokens is cut at its end."""
    rows: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    return rows


def padded(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0, left: bool = False) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 (rows, longest row), filled up at the end or, for writing, in front."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def filler(tokenizer: Any) -> int:
    """The token that fills rows up; what it is does not matter where it is masked."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
