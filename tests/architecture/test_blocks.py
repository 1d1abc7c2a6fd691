"""Where tensors lie in their model: blocks, depths and kinds of submodule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from sftm_app.architecture.blocks import Place, block_of, places_of
from sftm_app.architecture.reading import read_architecture


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.3.attention.output.dense.weight", "encoder.layer.3"),
        ("h.0.attn.c_attn.weight", "h.0"),
        ("embeddings.patch_embeddings.projection.weight", None),
        ("model.layers.3.block_sparse_moe.experts.2.w1.weight", "model.layers.3"),
        ("moe.experts.2.w1.weight", None),
        ("encoder.layers.0.blocks.1.attention.self.query.weight", "encoder.layers.0.blocks.1"),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2"),
    ],
)
def test_blocks(name: str, block: str | None) -> None:
    assert block_of(name) == block


def depths(*names: str) -> list[float | None]:
    found = places_of(names, {})
    return [found[name].depth for name in names]


def test_depth_counts_the_blocks_of_a_stack_by_number() -> None:
    assert depths(*(f"h.{k}.attn.c_attn.weight" for k in (10, 0, 5, 2))) == [1.0, 0.0, 2 / 3, 1 / 3]
    assert depths("encoder.block.0.w", "encoder.block.1.w", "decoder.block.0.w", "decoder.block.2.w") == [0, 1, 0, 1]
    assert depths("wte.weight", "h.0.w.weight", "ln_f.weight") == [None, 1.0, None], "the only block is the last one"


def test_blocks_of_stages_are_one_stack() -> None:
    names = [f"layers.{stage}.blocks.{block}.w" for stage, block in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))]
    assert depths(*names) == [0, 0.25, 0.5, 0.75, 1]
    assert depths(*names, "layers.0.downsample.w", "layers.1.downsample.w")[5:] == [0.25, 1]


def places(class_name: str, config: Any) -> dict[str, Place]:
    """The places of all tensors of a model, whose names in files are those in memory."""
    with torch.device("meta"):
        names = getattr(hf, class_name)(config).state_dict()
    owners = read_architecture(config.to_dict() | {"architectures": [class_name]}, names).owners
    return places_of(names, owners)


SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}


def test_kinds_follow_from_modules() -> None:
    found = places("BertModel", hf.BertConfig(**SMALL, vocab_size=9))
    block = "encoder.layer.1."
    assert found["embeddings.word_embeddings.weight"] == Place(None, "embedding")
    assert found["embeddings.LayerNorm.weight"] == found["pooler.dense.weight"] == Place(None, "other")
    for name in ("attention.self.query.weight", "attention.self.query.bias", "attention.output.dense.weight"):
        assert found[block + name] == Place(0.5, "attention")
    for name in ("intermediate.dense.weight", "output.dense.weight", "output.dense.bias"):
        assert found[block + name] == Place(0.5, "mlp"), "by what it does: no name in BERT says MLP"
    for name in ("attention.output.LayerNorm.weight", "output.LayerNorm.bias"):
        assert found[block + name] == Place(0.5, "other")
    gpt2 = places("GPT2Model", hf.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=9))
    kinds = {name: place.kind for name, place in gpt2.items()}
    assert (kinds["wte.weight"], kinds["h.0.attn.c_proj.weight"], kinds["h.0.mlp.c_proj.weight"]) == (
        "embedding",
        "attention",
        "mlp",
    )
    assert kinds["h.1.ln_1.weight"] == kinds["ln_f.weight"] == "other"
    t5 = places("T5Model", hf.T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=9))
    assert t5["decoder.block.1.layer.1.EncDecAttention.q.weight"] == Place(1.0, "attention")
    assert t5["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == Place(0.0, "attention")
    assert t5["encoder.block.0.layer.1.DenseReluDense.wo.weight"] == Place(0.0, "mlp")
    resnet = places("ResNetModel", hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1]))
    assert {place.kind for place in resnet.values()} == {"embedding", "other"}, "convolutional blocks have no MLP"


def test_a_file_without_a_config_has_names_only() -> None:
    found = places_of(["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "blocks.0.x.weight"], {})
    assert [place.kind for place in found.values()] == ["attention", "mlp", "other"]
