"""Which module owns which name in the files, and the role that this gives it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from closeness import assert_close
from tiny_checkpoints import change_config
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.fused import Fused
from sftm_app.architecture.owners import Owner, kind_of
from sftm_app.architecture.reading import read_architecture
from sftm_app.architecture.roles import Part, Role, assign
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.header import TensorInfo


def opened_architecture(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(folder)
    return read_architecture(checkpoint.config, checkpoint.tensors)


def roles_of(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder)
    owners = read_architecture(checkpoint.config, checkpoint.tensors).owners
    return {name: assign(info, owners.get(name)) for name, info in checkpoint.tensors.items()}


@pytest.mark.parametrize(("folder", "prefix"), [("base", ""), ("a", "vit.")])
def test_vit(tiny_models: Path, folder: str, prefix: str) -> None:
    found = roles_of(tiny_models / folder)
    layer = f"{prefix}encoder.layer.1."
    expected = {
        f"{prefix}embeddings.cls_token": (Role.EMBEDDING, "owned by ViTEmbeddings"),
        f"{prefix}embeddings.position_embeddings": (Role.EMBEDDING, "owned by ViTEmbeddings"),
        f"{prefix}embeddings.patch_embeddings.projection.weight": (Role.MATRIX, "owned by Conv2d"),
        f"{prefix}embeddings.patch_embeddings.projection.bias": (Role.BIAS, "owned by Conv2d"),
        f"{layer}attention.attention.query.weight": (Role.MATRIX, "owned by Linear"),
        f"{layer}attention.output.dense.bias": (Role.BIAS, "owned by Linear"),
        f"{layer}intermediate.dense.weight": (Role.MATRIX, "owned by Linear"),
        f"{layer}layernorm_before.weight": (Role.NORM, "owned by LayerNorm"),
        f"{layer}layernorm_before.bias": (Role.NORM, "owned by LayerNorm"),
        f"{prefix}layernorm.bias": (Role.NORM, "owned by LayerNorm"),
    }
    assert {name: (found[name].role, found[name].why) for name in expected} == expected
    assert not any(part.transposed for assignment in found.values() for part in assignment.parts)
    assert {assignment.role for assignment in found.values()} == {Role.MATRIX, Role.EMBEDDING, Role.BIAS, Role.NORM}
    assert not any("no module" in assignment.why for assignment in found.values())


def test_every_name_in_the_files_is_known_to_the_architecture(tiny_models: Path) -> None:
    """transformers renames tensors in memory; owners are listed by the names in the files."""
    for folder in ("base", "a"):
        checkpoint = open_checkpoint(tiny_models / folder)
        assert set(checkpoint.tensors) <= set(read_architecture(checkpoint.config, checkpoint.tensors).owners)


def test_the_head_is_outside_the_backbone(tiny_models: Path) -> None:
    architecture = opened_architecture(tiny_models / "a")
    assert architecture.backbone_prefix == "vit."
    outside = {name for name, owner in architecture.owners.items() if not owner.in_backbone}
    assert outside == {"classifier.weight", "classifier.bias"}
    base = opened_architecture(tiny_models / "base")
    assert all(owner.in_backbone for owner in base.owners.values())


@pytest.mark.parametrize(("model_class", "prefix"), [(GPT2Model, ""), (GPT2LMHeadModel, "transformer.")])
def test_gpt2_linear_maps_are_stored_transposed(tmp_path: Path, model_class: Any, prefix: str) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    model = model_class(config)
    model.save_pretrained(tmp_path)
    found = roles_of(tmp_path)
    attention = found[f"{prefix}h.0.attn.c_attn.weight"]
    assert (attention.role, attention.why) == (
        Role.MATRIX,
        "owned by Conv1D; query, key and value in one matrix, merged whole",
    )
    (part,) = attention.parts
    assert part.transposed
    assert found[f"{prefix}h.0.attn.c_attn.bias"].role is Role.BIAS
    assert found[f"{prefix}h.0.ln_1.weight"].role is Role.NORM
    # The table is tied to the language-model head, and is still a table.
    for table in ("wte", "wpe"):
        assert (found[f"{prefix}{table}.weight"].role, found[f"{prefix}{table}.weight"].parts) == (Role.EMBEDDING, ())
    owners = opened_architecture(tmp_path).owners
    assert owners[f"{prefix}wte.weight"].in_backbone

    stored = dict(model.named_parameters())[f"{prefix}h.0.attn.c_attn.weight"].detach()
    matrix = part.of(stored)
    assert matrix.shape == (24, 8)
    x = torch.randn(3, 8)
    block = model.get_submodule(f"{prefix}h.0.attn.c_attn")
    assert_close(block(x) - block.bias, x @ matrix.T)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2), (4, 3, 5), (2, 1, 1, 1), (3, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_is_a_view_of_its_tensor(shape: tuple[int, ...], transposed: bool) -> None:
    if transposed and len(shape) > 2:
        pytest.skip("only linear maps are stored transposed")
    tensor = torch.randn(shape)
    part = Part(transposed=transposed)
    matrix = part.of(tensor)
    rows = shape[1] if transposed else shape[0]
    assert matrix.shape == part.shape_in(shape) == (rows, tensor.numel() // rows if rows else shape[0])
    before = tensor.clone()
    matrix += 1
    assert torch.equal(tensor, before + 1)


def test_parts_of_stacks_and_of_fused_maps() -> None:
    stack = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(Part("expert 1", expert=1).of(stack), stack[1])
    assert torch.equal(Part("expert 1", expert=1, transposed=True).of(stack), stack[1].T)
    assert Part("expert 1", expert=1, transposed=True).shape_in((2, 3, 4)) == (4, 3)
    stored = torch.arange(18.0).reshape(3, 6)
    assert torch.equal(Part("key", rows=(2, 4), transposed=True).of(stored), stored[:, 2:4].T)


def test_a_convolution_is_the_linear_map_of_its_patches() -> None:
    convolution = torch.nn.Conv2d(3, 4, 2, bias=False)
    patch = torch.randn(1, 3, 2, 2)
    matrix = Part().of(convolution.weight.detach())
    assert_close(convolution(patch).reshape(-1), matrix @ patch.reshape(-1))


def test_integers_are_buffers(tmp_path: Path, tiny_models: Path) -> None:
    checkpoint = open_checkpoint(tiny_models / "base")
    info = next(iter(checkpoint.tensors.values()))
    integer = type(info)(info.name, torch.int64, info.shape, info.offset, info.n_bytes)
    assert assign(integer, None).role is Role.BUFFER
    assert assign(info, None).role is Role.EMBEDDING


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no_such_model", "auto_map": {"AutoModel": "evil.Model"}}, "`auto_map`.*never run"),
        ({"model_type": "no_such_model"}, "'no_such_model' is not known to transformers"),
        ({"model_type": None}, "names no `model_type`"),
        ({"model_type": 7}, "names no `model_type`"),
        ({"hidden_size": "wide"}, "config"),
    ],
)
def test_configs_that_are_refused(models: Path, changes: dict[str, Any], said: str) -> None:
    change_config(models / "base", **changes)
    with pytest.raises(CheckpointError, match=said):
        read_architecture(open_checkpoint(models / "base").config)


def test_code_shipped_with_a_checkpoint_never_runs(models: Path) -> None:
    (models / "base" / "evil.py").write_text(f"open({str(models / 'ran')!r}, 'w')")
    change_config(models / "base", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    found = read_architecture(open_checkpoint(models / "base").config, ["encoder.layer.0.intermediate.dense.weight"])
    assert found.owners["encoder.layer.0.intermediate.dense.weight"].module == "Linear"
    assert not (models / "ran").exists()


@pytest.mark.parametrize("architectures", [["NoSuchClass"], ["os"], [], "ViTModel", [3], ["PreTrainedConfig"]])
def test_an_unknown_class_falls_back_to_the_plain_backbone(models: Path, architectures: Any) -> None:
    change_config(models / "base", architectures=architectures)
    owners = opened_architecture(models / "base").owners
    assert owners["encoder.layer.0.intermediate.dense.weight"].kind == "linear"


def owners_of(class_name: str, config: Any, *names: str) -> dict[str, Owner]:
    return read_architecture(config.to_dict() | {"architectures": [class_name]}, names).owners


def test_how_stacks_of_experts_are_stored() -> None:
    """Llama 4 has no flag for it; the shapes of the two stacks decide."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11}
    llama = transformers.Llama4TextConfig(**small, num_local_experts=2, intermediate_size=8, num_key_value_heads=1)
    experts = "model.layers.0.feed_forward.experts."
    found = owners_of("Llama4ForCausalLM", llama, f"{experts}gate_up_proj", f"{experts}down_proj")
    assert {owner.kind for owner in found.values()} == {"experts_transposed"}
    gpt_oss = transformers.GptOssConfig(**small, num_local_experts=2, intermediate_size=8, num_key_value_heads=1)
    layer = "model.layers.0.mlp."
    kinds = {
        f"{layer}experts.gate_up_proj": "experts_transposed",
        f"{layer}experts.gate_up_proj_bias": "bias",
        f"{layer}router.weight": "linear",
        "model.layers.0.self_attn.sinks": "bare",
    }
    found = owners_of("GptOssForCausalLM", gpt_oss, *kinds)
    assert {name: owner.kind for name, owner in found.items()} == kinds


def test_a_stack_has_one_matrix_per_expert() -> None:
    info = TensorInfo("x", torch.float32, (3, 8, 6), 0, 576)
    fused = Fused(("gate", "up"), (3, 3))
    owner = Owner("Experts", "experts_transposed", True, fused=fused)
    whole, split = assign(info, owner), assign(info, owner, split_fused=True)
    assert [(part.label, part.expert, part.rows) for part in whole.parts] == [
        (f"expert {e}", e, None) for e in range(3)
    ]
    assert [part.shape_in(info.shape) for part in whole.parts] == [(6, 8)] * 3
    assert [part.label for part in split.parts[:2]] == ["expert 0 gate", "expert 0 up"]
    assert [part.shape_in(info.shape) for part in split.parts] == [(3, 8)] * 6
    assert split.why == "owned by Experts; a stack of 3 matrices; split into gate and up"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (torch.nn.Linear(2, 2), "linear"),
        (torch.nn.ConvTranspose2d(2, 3, 2), "linear_transposed"),
        (torch.nn.Conv1d(2, 3, 2), "convolution"),
        (torch.nn.EmbeddingBag(2, 2), "embedding"),
        (torch.nn.BatchNorm1d(2), "norm"),
        (torch.nn.MultiheadAttention(2, 1), "linear"),
        (torch.nn.LSTM(2, 2), "linear"),
        (torch.nn.PReLU(), "bare"),
    ],
)
def test_kinds_of_torchs_own_modules(module: torch.nn.Module, expected: str) -> None:
    assert kind_of(module, "weight", (2, 2)) == expected


def test_masks_and_positions_that_a_model_computes_are_copied() -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    found = owners_of("GPT2LMHeadModel", config, "h.0.attn.bias", "h.0.attn.c_attn.bias", "h.0.surprise")
    assert {name: owner.kind for name, owner in found.items()} == {
        "h.0.attn.bias": "buffer",
        "h.0.attn.c_attn.bias": "linear_transposed",
    }
    mask = TensorInfo("h.0.attn.bias", torch.float32, (1, 1, 6, 6), 0, 144)
    assert assign(mask, found["h.0.attn.bias"]).role is Role.BUFFER


def test_a_large_model_is_read_in_seconds() -> None:
    config = transformers.LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(80)]
    started = time.process_time()
    assert len(owners_of("LlamaForCausalLM", config, *names)) == 80
    assert time.process_time() - started < 5
