"""Tiny language models whose tokenizers differ, and what their merge must be, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [*(f"w{i}" for i in range(8)), "<s>", "</s>"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS, added: Sequence[str] = (), **settings: Any) -> None:
    """A tokenizer of whole words; `added` are added to it, as a fine-tune adds them."""
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in added])
    tokens = {"bos_token": "<s>", "eos_token": "</s>"} | settings
    template = tokens.pop("chat_template", None)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)


def save_model(folder: Path, rows: int = 16, tied: bool = False) -> Path:
    """A tiny Llama with tables of so many rows, and the tokenizer of WORDS."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    ids = {"bos_token_id": 8, "eos_token_id": 9}
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes, **heads, **ids)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tuned(
    folder: Path, base: Path, seed: int, rows: int | None = None, model_class: type[Any] = LlamaForCausalLM
) -> Path:
    """A fine-tune: every weight changed a little, after a resize to `rows`. Its tokenizer is the test's to save."""
    model = model_class.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def row(folder: Path, token: str, table: str = EMBEDDING) -> Tensor:
    """The row of a token in a model's table, by the model's own tokenizer."""
    from transformers import AutoTokenizer

    return weights(folder)[table][AutoTokenizer.from_pretrained(folder).get_vocab()[token]]
