"""Tiny random models of many families, with inputs for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCABULARY = 19
TASKS = ("a", "b", "c")
VISION = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
TEXT = VISION | {"vocab_size": VOCABULARY, "max_position_embeddings": 16}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CAUSAL = TEXT | SPECIAL | {"num_key_value_heads": 1, "head_dim": 4}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
CLIP_TEXT = TEXT | {"projection_dim": 6} | SPECIAL
CLIP_VISION = VISION | IMAGE | {"projection_dim": 6}
SEQ2SEQ = SPECIAL | {"decoder_start_token_id": 0}
T5 = SEQ2SEQ | {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
GPT2 = SPECIAL | {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": VOCABULARY, "n_positions": 16}
BART = SEQ2SEQ | {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16,
    "forced_eos_token_id": None,
}


def images(model: Any) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(1, model.config.num_channels, 8, 8)}


def tokens(_: Any) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[3, 5, 4, 2]])}


def pairs(_: Any) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[3, 5, 2]]), "decoder_input_ids": torch.tensor([[0, 4]])}


def both(_: Any) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[3, 5, 2]]), "pixel_values": torch.rand(1, 1, 8, 8)}


@dataclass(frozen=True)
class Family:
    """The classes of the base and of the fine-tunes, by name, both built from `config(**settings)`.

    prefix: what the files of one side put before the other's names. transposed: matrices stored as in x out.
    """

    config: str
    settings: dict[str, Any]
    base: str
    task: str
    inputs: Callable[[Any], dict[str, Tensor]]
    prefix: str = ""
    transposed: tuple[str, ...] = ()


VIT = VISION | IMAGE
SWIN = IMAGE | {"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 2}
MOE = CAUSAL | EXPERTS
CONV1D = ("c_attn", "c_proj", "c_fc")
STACKED = ("experts.gate_up_proj", "experts.down_proj")
FAMILIES: dict[str, Family] = {
    "vit": Family("ViTConfig", VIT, "ViTModel", "ViTForImageClassification", images, "vit."),
    "deit": Family("DeiTConfig", VIT, "DeiTModel", "DeiTForImageClassification", images, "deit."),
    "dinov2": Family("Dinov2Config", VIT, "Dinov2Model", "Dinov2ForImageClassification", images, "dinov2."),
    "dinov2 swiglu": Family(
        "Dinov2Config", VIT | {"use_swiglu_ffn": True}, "Dinov2Model", "Dinov2ForImageClassification", images, "dinov2."
    ),
    "swin": Family("SwinConfig", SWIN, "SwinModel", "SwinForImageClassification", images, "swin."),
    "clip vision": Family("CLIPVisionConfig", CLIP_VISION, "CLIPVisionModel", "CLIPVisionModel", images),
    "clip projected": Family(
        "CLIPVisionConfig", CLIP_VISION, "CLIPVisionModel", "CLIPVisionModelWithProjection", images, "vision_model."
    ),
    "clip": Family(
        "CLIPConfig",
        {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 6},
        "CLIPModel",
        "CLIPModel",
        both,
    ),
    "siglip": Family(
        "SiglipConfig", {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION}, "SiglipModel", "SiglipModel", both
    ),
    "bert": Family("BertConfig", TEXT, "BertModel", "BertForSequenceClassification", tokens, "bert."),
    "bert masked": Family("BertConfig", TEXT, "BertForMaskedLM", "BertForMaskedLM", tokens),
    "roberta": Family(
        "RobertaConfig", TEXT | SPECIAL, "RobertaForMaskedLM", "RobertaForSequenceClassification", tokens
    ),
    "distilbert": Family(
        "DistilBertConfig",
        {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "vocab_size": VOCABULARY},
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        tokens,
        "distilbert.",
    ),
    "t5": Family("T5Config", T5, "T5ForConditionalGeneration", "T5ForConditionalGeneration", pairs),
    "t5 untied": Family(
        "T5Config",
        T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        "T5ForConditionalGeneration",
        "T5ForConditionalGeneration",
        pairs,
    ),
    "bart": Family("BartConfig", BART, "BartForConditionalGeneration", "BartForConditionalGeneration", pairs),
    "gpt2": Family("GPT2Config", GPT2, "GPT2LMHeadModel", "GPT2LMHeadModel", tokens, "", CONV1D),
    "gpt2 plain": Family(
        "GPT2Config", GPT2, "GPT2Model", "GPT2ForSequenceClassification", tokens, "transformer.", CONV1D
    ),
    "llama": Family("LlamaConfig", CAUSAL, "LlamaForCausalLM", "LlamaForCausalLM", tokens),
    "llama classifier": Family("LlamaConfig", CAUSAL, "LlamaForCausalLM", "LlamaForSequenceClassification", tokens),
    "qwen2": Family(
        "Qwen2Config", CAUSAL | {"tie_word_embeddings": True}, "Qwen2ForCausalLM", "Qwen2ForCausalLM", tokens
    ),
    "mistral": Family("MistralConfig", CAUSAL, "MistralForCausalLM", "MistralForCausalLM", tokens),
    "gemma": Family("GemmaConfig", CAUSAL, "GemmaForCausalLM", "GemmaForCausalLM", tokens),
    "phi3": Family("Phi3Config", CAUSAL, "Phi3ForCausalLM", "Phi3ForCausalLM", tokens),
    "neox": Family("GPTNeoXConfig", TEXT | SPECIAL, "GPTNeoXForCausalLM", "GPTNeoXForCausalLM", tokens),
    "mixtral": Family("MixtralConfig", MOE, "MixtralForCausalLM", "MixtralForCausalLM", tokens),
    "granite moe": Family("GraniteMoeConfig", MOE, "GraniteMoeForCausalLM", "GraniteMoeForCausalLM", tokens),
    "gpt-oss": Family("GptOssConfig", MOE, "GptOssForCausalLM", "GptOssForCausalLM", tokens, "", STACKED),
    "resnet": Family(
        "ResNetConfig",
        {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"},
        "ResNetModel",
        "ResNetForImageClassification",
        images,
        "resnet.",
    ),
}


def shaken(model: Any, seed: int, by: float) -> Any:
    """The model with every floating-point tensor changed a little, so that none stays at an initial zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * by
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return model


def save_family(root: Path, family: Family, **changes: Any) -> Path:
    """Save the base in root/base and fine-tunes of it in root/a, root/b and root/c, each with its own labels."""
    torch.manual_seed(0)
    config = getattr(hf, family.config)(**(family.settings | changes))
    model = getattr(hf, family.base)(config)
    if (family.settings | changes).get("tie_word_embeddings") is False:
        # transformers always builds T5 tied, and loads it untied if the files hold two matrices.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    shaken(model, 0, 0.3).save_pretrained(root / "base")
    for seed, name in enumerate(TASKS, start=1):
        save_task(root / name, root / "base", family.task, seed)
    return root


def save_task(folder: Path, base: Path, class_name: str, seed: int, by: float = 0.05) -> None:
    """A fine-tune of the base: every weight is changed, and a head, if the class has one, has seed + 1 labels."""
    torch.manual_seed(seed)
    labels = (
        {} if "Classification" not in class_name else {"id2label": {i: f"{folder.name}{i}" for i in range(seed + 1)}}
    )
    shaken(getattr(hf, class_name).from_pretrained(base, **labels), seed, by).save_pretrained(folder)
