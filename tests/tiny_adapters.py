"""Tiny random models, and LoRA adapters of them that PEFT makes and saves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SIZE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def build(kind: str, **settings: Any) -> Any:
    """A tiny random model of one of the kinds below, the same on every call."""
    torch.manual_seed(0)
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**(SIZE | {"vocab_size": 30, "num_key_value_heads": 1} | settings)))
        case "gpt2":
            sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 16}
            return GPT2LMHeadModel(GPT2Config(**(sizes | {"bos_token_id": 0, "eos_token_id": 1} | settings)))
        case "bert":
            return BertForSequenceClassification(BertConfig(**(SIZE | {"vocab_size": 30, "num_labels": 3} | settings)))
        case "vit":
            image: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_labels": 3}
            return ViTForImageClassification(ViTConfig(**(SIZE | image | settings)))
        case "t5":
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 30}
            return T5ForConditionalGeneration(T5Config(**(sizes | {"decoder_start_token_id": 0} | settings)))
    raise ValueError(kind)


TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "bert": ["query", "dense"],
    "vit": ["q_proj", "projection"],
    "t5": ["q", "wo"],
}


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    """Two fixed samples for a model of this kind."""
    generator = torch.Generator().manual_seed(7)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    tokens = torch.randint(2, 30, (2, 6), generator=generator)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens[:, :3]} if kind == "t5" else {})


def logits(model: Any, kind: str) -> torch.Tensor:
    """A model's output for the fixed samples."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs_of(kind)).logits
    return found


def save_adapter(folder: Path, kind: str, seed: int, base: dict[str, Any] | None = None, **settings: Any) -> Path:
    """An adapter of build(kind, **base) with random values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            build(kind, **(base or {})),
            LoraConfig(**({"r": 3, "lora_alpha": 5, "target_modules": TARGETS[kind]} | settings)),
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return folder


def load_adapter(folder: Path, kind: str, **base: Any) -> Any:
    """The adapter on its base, as PEFT runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(build(kind, **base), folder)
