"""Places on the map, and what its rows and columns are called."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from inspection_cases import NAME, opened, preflight_of

from sftm_app.inspection.layers import kind_labels, map_layers, place, short_columns, short_rows
from sftm_app.planning.recipe import make_recipe


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("encoder.layer.3.attention.output.dense.weight", "encoder.layer.3", "attention.output.dense"),
        ("encoder.layer.11.intermediate.dense.weight", "encoder.layer.11", "intermediate.dense"),
        ("h.0.attn.c_attn.weight", "h.0", "attn.c_attn"),
        ("vit.encoder.layer.0.output.dense.weight", "vit.encoder.layer.0", "output.dense"),
        ("embeddings.patch_embeddings.projection.weight", "outside", "embeddings.patch_embeddings.projection"),
        ("blocks.2.weight", "blocks.2", "blocks.2"),
        ("0.fc1.weight", "0", "fc1"),
        ("layer1.conv2.weight", "outside", "layer1.conv2"),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2", "layer.0.SelfAttention.q"),
        ("model.layers.3.block_sparse_moe.experts.2.w1.weight", "model.layers.3", "block_sparse_moe.experts.2.w1"),
        ("moe.experts.2.w1.weight", "outside", "moe.experts.2.w1"),
        ("encoder.layers.0.blocks.1.attention.self.query.weight", "encoder.layers.0.blocks.1", "attention.self.query"),
        ("encoder.block.0.1.attention.self.query.weight", "encoder.block.0.1", "attention.self.query"),
        ("stages.2.layers.0.layer.1.convolution.weight", "stages.2.layers.0", "layer.1.convolution"),
        ("blocks.0.mlp.2.weight", "blocks.0", "mlp.2"),
    ],
)
def test_places(name: str, row: str, column: str) -> None:
    assert place(name) == (row, column)


def test_the_map_of_a_vit(tiny_models: Path) -> None:
    layers = map_layers(preflight_of(tiny_models))
    columns = (
        "attention.attention.key", "attention.attention.query", "attention.attention.value",
        "attention.output.dense", "intermediate.dense", "output.dense",
    )  # fmt: skip
    assert [layer.row for layer in layers] == ["outside"] + ["encoder.layer.0"] * 6 + ["encoder.layer.1"] * 6
    assert {layer.column for layer in layers if layer.row == "encoder.layer.0"} == set(columns)
    assert layers[0].name == "embeddings.patch_embeddings.projection.weight"
    assert layers[0].shape == (16, 16)  # 16 channels out, 1 x 4 x 4 in
    by_name = {layer.name: layer for layer in layers}
    assert by_name[NAME].shape == (24, 16)
    assert all(layer.members == (0, 1, 2) and not layer.part.transposed for layer in layers)


def test_blocks_are_ordered_by_number(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    template = NAME.replace(".1.", ".{}.")
    names = [template.format(i) for i in (10, 9, 2, 0)]
    info = found.base.tensors[NAME]
    base = dataclasses.replace(found.base, tensors={name: info for name in names})
    match = dataclasses.replace(found.matches[0], names={name: name for name in names})
    owners = {name: found.architecture.owners[NAME] for name in names}
    architecture = dataclasses.replace(found.architecture, owners=owners)
    made = map_layers(dataclasses.replace(found, base=base, matches=(match,), architecture=architecture))
    assert [layer.name for layer in made] == [template.format(i) for i in (0, 2, 9, 10)]


def test_short_names() -> None:
    assert short_rows(["outside", "encoder.layer.0", "encoder.layer.10"]) == ["outside", "0", "10"]
    assert short_rows(["encoder.0", "decoder.0"]) == ["encoder.0", "decoder.0"]
    columns = ["attention.attention.key", "attention.output.dense", "intermediate.dense", "output.dense"]
    shown = short_columns(columns)
    assert shown == ["key", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert len(set(shown)) == len(columns)
    assert short_rows(["text_model.encoder.layers.0", "outside", "vision_model.encoder.layers.11"]) == [
        "text_model.0", "outside", "vision_model.11",
    ]  # fmt: skip
    assert short_rows(["encoder.block.0", "decoder.block.11"]) == ["encoder.0", "decoder.11"]
    assert short_rows(["layers.0.blocks.0", "layers.1.blocks.0"]) == ["0.0", "1.0"]


@pytest.mark.parametrize(
    "rows",
    [["a.0", "a.b.0"], ["0", "a.0"], ["blocks.0", "blocks.0.blocks.0"], ["a.x.b.0", "a.b.0"], ["a.b.0", "c.b.0", "0"]],
)
def test_no_two_rows_are_shown_alike(rows: list[str]) -> None:
    assert len(set(short_rows(rows))) == len(rows)


ATTENTION = ["query", "key", "value", "output"]
T5 = [f"{kind}Attention.{letter}" for kind in ("Self", "EncDec") for letter in "qkvo"]


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        pytest.param(
            ["embeddings.patch_embeddings.projection", *(f"attention.attention.{word}" for word in ATTENTION[:3]),
             "attention.output.dense", "intermediate.dense", "output.dense"],
            ["patch embedding", *ATTENTION, "up", "down"], id="ViT",
        ),
        pytest.param(
            [*(f"attention.self.{word}" for word in ATTENTION[:3]), "attention.output.dense", "intermediate.dense",
             "output.dense", "crossattention.self.query", "crossattention.output.dense", "pooler.dense"],
            [*ATTENTION, "up", "down", "cross query", "cross output", "pooler"], id="BERT",
        ),
        pytest.param(
            ["vision_model.embeddings.patch_embedding", *(f"self_attn.{word}_proj" for word in ("q", "k", "v", "out")),
             "mlp.fc1", "mlp.fc2", "visual_projection", "text_projection"],
            ["patch embedding", *ATTENTION, "up", "down", "visual_projection", "text_projection"], id="CLIP",
        ),
        pytest.param(
            [*T5, "DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo", "lm_head"],
            [*ATTENTION, *(f"cross {word}" for word in ATTENTION), "gate", "up", "down", "language model head"],
            id="T5",
        ),
        pytest.param(["DenseReluDense.wi", "DenseReluDense.wo"], ["up", "down"], id="T5 without a gate"),
        pytest.param(
            ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
            ["query, key, value", "output", "up", "down"], id="GPT-2",
        ),
        pytest.param(
            ["attn.c_attn [query]", "attn.c_attn [key]", "attn.c_attn [value]", "attn.c_proj"], ATTENTION,
            id="GPT-2, split",
        ),
        pytest.param(
            [*(f"self_attn.{letter}_proj" for letter in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
            [*ATTENTION, "gate", "up", "down"], id="Llama",
        ),
        pytest.param(
            ["block_sparse_moe.gate", *(f"block_sparse_moe.experts.{i}.w{j}" for i in (0, 11) for j in (1, 2, 3))],
            ["router", *(f"{word}, expert {i}" for i in (0, 11) for word in ("gate", "down", "up"))], id="Mixtral",
        ),
        pytest.param(
            ["mlp.gate", "mlp.experts.gate_up_proj [expert 0]", "mlp.experts.gate_up_proj [expert 1 up]",
             "mlp.experts.down_proj [expert 0]", "mlp.shared_experts.down_proj"],
            ["router", "gate and up, expert 0", "up, expert 1", "down, expert 0", "shared down"], id="stacked experts",
        ),
        pytest.param(
            ["self_attn.q_proj", "encoder_attn.q_proj", "self_attn.out_proj", "encoder_attn.out_proj", "fc1", "fc2"],
            ["query", "cross query", "output", "cross output", "up", "down"], id="BART",
        ),
        pytest.param(
            ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
            ["query, key, value", "output", "up", "down"], id="GPT-NeoX",
        ),
        pytest.param(
            ["layer.0.convolution", "layer.1.convolution", "shortcut.convolution"],
            ["0.convolution", "1.convolution", "shortcut.convolution"], id="unknown words",
        ),
        pytest.param(
            ["visual.mlp.fc1", "mlp.up_proj", "mlp.fc2", "x.<b>q</b>"], ["fc1", "up_proj", "down", "<b>q</b>"],
            id="two of one kind",
        ),
    ],
)  # fmt: skip
def test_columns_are_called_as_a_person_would(columns: list[str], labels: list[str]) -> None:
    assert kind_labels(columns) == labels
    assert len(set(labels)) == len(columns)


def test_a_label_that_is_another_columns_short_name_is_given_up() -> None:
    assert kind_labels(["self.q", "a.b", "x.query"]) == ["q", "b", "query"]
    assert kind_labels(["up", "mlp.fc1"]) == ["up", "fc1"]
    assert kind_labels([]) == []


def test_encoder_and_decoder_of_a_t5_have_one_row_a_block_and_share_columns(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0)
    for seed, name in enumerate(("base", "t")):
        torch.manual_seed(seed)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / name)
    layers = map_layers(opened(make_recipe(tmp_path / "base", [tmp_path / "t"])))
    rows = list(dict.fromkeys(layer.row for layer in layers))
    assert rows == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    columns = list(dict.fromkeys(layer.column for layer in layers))
    assert set(columns) == {*T5, "DenseReluDense.wi", "DenseReluDense.wo"}
    assert len({(layer.row, layer.column) for layer in layers}) == len(layers) == 2 * 6 + 2 * 10
    assert set(kind_labels(columns)) == {*ATTENTION, *(f"cross {word}" for word in ATTENTION), "up", "down"}


def test_sublayers_that_differ_in_their_number_alone_keep_it(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    names = [f"stages.0.layers.0.layer.{i}.convolution.weight" for i in range(2)]
    info, owner = found.base.tensors[NAME], found.architecture.owners[NAME]
    base = dataclasses.replace(found.base, tensors={name: info for name in names})
    match = dataclasses.replace(found.matches[0], names={name: name for name in names})
    architecture = dataclasses.replace(found.architecture, owners={name: owner for name in names})
    made = map_layers(dataclasses.replace(found, base=base, matches=(match,), architecture=architecture))
    assert [layer.column for layer in made] == ["layer.0.convolution", "layer.1.convolution"]
    assert {layer.row for layer in made} == {"stages.0.layers.0"}
