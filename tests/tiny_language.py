"""Tiny random models that read text, each with two fine-tunes and a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "sky", "red", "blue", "big"]
WORDS += ["small", "and", "or", "not", "is", "was"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>"]
VOCABULARY = len(SPECIAL) + len(WORDS)


def save_tokenizer(folder: Path, template: str = "$A", **settings: Any) -> None:
    """A tokenizer of whole words. template: the special tokens around a text."""
    names = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, names[name]) for name in SPECIAL]
    )
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(tokens | settings)).save_pretrained(folder)


def save_set(root: Path, base: Any, task_class: Any, names: str = "ab", **config: Any) -> Path:
    """`base` saved under root/base, and for each name a `task_class` model: the base's weights changed a little.

    config: changes of the base's config; a value that is a function is called with the task's name.
    """
    base.save_pretrained(root / "base")
    for seed, name in enumerate(names, start=1):
        torch.manual_seed(seed)
        own = {key: value(name) if callable(value) else value for key, value in config.items()}
        task = task_class.from_pretrained(root / "base", **own)
        with torch.no_grad():
            for parameter in task.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        task.save_pretrained(root / name)
    return root
