"""Tiny random models that are ready to be tried, built without files, with norms whose gains are not one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_checkpoints import tiny_config
from tiny_language import VOCABULARY, save_tokenizer
from torch import nn

from sftm_app.architecture.roles import Part
from sftm_app.evaluation.causal_lm import CausalLM
from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.image_classifier import ImageClassifier
from sftm_app.evaluation.locating import Place
from sftm_app.evaluation.sentence_encoder import SentenceEncoder
from sftm_app.evaluation.seq2seq import Seq2Seq
from sftm_app.evaluation.text_classifier import TextClassifier
from sftm_app.evaluation.zero_shot import ZeroShot

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SIZES | IDS | {"max_position_embeddings": 64}
BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
OPT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16}
START = {"decoder_start_token_id": 0}
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
BUILT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2 | IDS),
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT | HEADS),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", TEXT | HEADS),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", TEXT | {"num_key_value_heads": 2}),
    "neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT),
    "opt": ("OPTConfig", "OPTForCausalLM", OPT | IDS | {"max_position_embeddings": 64}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", TEXT | HEADS | {"num_local_experts": 3}),
    "bert": ("BertConfig", "BertForSequenceClassification", TEXT | {"num_labels": 3}),
    "encoder": ("BertConfig", "BertModel", TEXT),
    "albert": ("AlbertConfig", "AlbertModel", TEXT | {"embedding_size": 16}),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5 | IDS | START),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART | IDS | {"decoder_start_token_id": 2}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", BART | IDS | {"decoder_start_token_id": 2}),
}
TEMPLATES = {"t5": "$A </s>", "bart": "<s> $A </s>", "mbart": "<s> $A </s>"}
TEMPLATES |= {"bert": "<cls> $A <sep>", "encoder": "<cls> $A <sep>", "albert": "<cls> $A <sep>", "llama": "<s> $A"}


def shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokenizer_of(template: str = "$A", **settings: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), template, **settings)
        return hf.AutoTokenizer.from_pretrained(folder)


def language(name: str, **changes: Any) -> Any:
    """A model of one of BUILT, as its family tries it."""
    torch.manual_seed(0)
    config, model_class, settings = BUILT[name]
    model = shaken(getattr(hf, model_class)(getattr(hf, config)(**(settings | changes))))
    tokenizer = tokenizer_of(TEMPLATES.get(name, "$A"), cls_token="<cls>", sep_token="<sep>")
    if name == "bert":
        return TextClassifier(model, tokenizer, ("a", "b", "c"))
    if name in ("encoder", "albert"):
        return SentenceEncoder(model, tokenizer, "mean", 64)
    return (Seq2Seq if model.config.is_encoder_decoder else CausalLM)(model, tokenizer)


def vit(**changes: Any) -> ImageClassifier:
    """Of gray images of 8 x 8 pixels, which it cuts into 2 x 2 patches."""
    torch.manual_seed(0)
    model = shaken(hf.ViTForImageClassification(tiny_config(num_labels=3, **changes)))
    return ImageClassifier(model, None, processor(1), 1, ("a", "b", "c"))


def resnet() -> ImageClassifier:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}
    model = shaken(hf.ResNetForImageClassification(hf.ResNetConfig(num_channels=1, num_labels=3, **sizes)))
    return ImageClassifier(model, None, processor(1), 1, ("a", "b", "c"))


def processor(channels: int) -> Any:
    side = {"height": 8, "width": 8}
    return hf.ViTImageProcessorPil(size=side, image_mean=[0.5] * channels, image_std=[0.5] * channels)


def clip() -> ZeroShot:
    torch.manual_seed(0)
    text = hf.CLIPTextConfig(**(TEXT | {"max_position_embeddings": 12}))
    vision = hf.CLIPVisionConfig(**SIZES, image_size=8, patch_size=4)
    config = hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    return ZeroShot(shaken(hf.CLIPModel(config)), tokenizer_of("<s> $A </s>"), processor(3), 3, ())


def place_of(model: EvaluationModel, path: str, name: str = "weight") -> Place:
    module: nn.Module = model.model.get_submodule(path)
    return Place(module, module.get_parameter(name), f"{path}.{name}")


def part_of(path: str) -> Part:
    """GPT-2 stores its matrices as in x out."""
    return Part(transposed=path.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc"))


def direction(size: int, seed: int = 5) -> torch.Tensor:
    found = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return found / found.norm()
