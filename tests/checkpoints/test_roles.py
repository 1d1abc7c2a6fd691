"""Which module owns which name in the files, and the role that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import change_config
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from sftm_app.checkpoints.architecture import read_architecture
from sftm_app.checkpoints.checkpoint import open_checkpoint
from sftm_app.checkpoints.roles import Role, as_matrix, assign, from_matrix
from sftm_app.errors import CheckpointError


def roles_of(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder)
    owners = read_architecture(checkpoint.config).owners
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
    assert not any(assignment.transposed for assignment in found.values())
    assert {assignment.role for assignment in found.values()} == {Role.MATRIX, Role.EMBEDDING, Role.BIAS, Role.NORM}
    assert not any("no module" in assignment.why for assignment in found.values())


def test_every_name_in_the_files_is_known_to_the_architecture(tiny_models: Path) -> None:
    """transformers renames tensors in memory; the owners are those of the names in the files."""
    for folder in ("base", "a"):
        checkpoint = open_checkpoint(tiny_models / folder)
        assert set(checkpoint.tensors) <= set(read_architecture(checkpoint.config).owners)


def test_the_head_is_outside_the_backbone(tiny_models: Path) -> None:
    architecture = read_architecture(open_checkpoint(tiny_models / "a").config)
    assert architecture.backbone_prefix == "vit."
    outside = {name for name, owner in architecture.owners.items() if not owner.in_backbone}
    assert outside == {"classifier.weight", "classifier.bias"}
    base = read_architecture(open_checkpoint(tiny_models / "base").config)
    assert all(owner.in_backbone for owner in base.owners.values())


@pytest.mark.parametrize(("model_class", "prefix"), [(GPT2Model, ""), (GPT2LMHeadModel, "transformer.")])
def test_gpt2_linear_maps_are_stored_transposed(tmp_path: Path, model_class: Any, prefix: str) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    model = model_class(config)
    model.save_pretrained(tmp_path)
    found = roles_of(tmp_path)
    attention = found[f"{prefix}h.0.attn.c_attn.weight"]
    assert (attention.role, attention.transposed, attention.why) == (Role.MATRIX, True, "owned by Conv1D")
    assert found[f"{prefix}h.0.attn.c_attn.bias"].role is Role.BIAS
    assert found[f"{prefix}h.0.ln_1.weight"].role is Role.NORM
    # The table is tied to the language-model head; it stays a table.
    for table in ("wte", "wpe"):
        assert (found[f"{prefix}{table}.weight"].role, found[f"{prefix}{table}.weight"].transposed) == (
            Role.EMBEDDING,
            False,
        )
    owners = read_architecture(open_checkpoint(tmp_path).config).owners
    assert owners[f"{prefix}wte.weight"].in_backbone

    stored = dict(model.named_parameters())[f"{prefix}h.0.attn.c_attn.weight"].detach()
    matrix = as_matrix(stored, transposed=True)
    assert matrix.shape == (24, 8)
    x = torch.randn(3, 8)
    block = model.get_submodule(f"{prefix}h.0.attn.c_attn")
    torch.testing.assert_close(block(x) - block.bias, x @ matrix.T)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2), (4, 3, 5), (2, 1, 1, 1), (3, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_as_matrix_and_back(shape: tuple[int, ...], transposed: bool) -> None:
    if transposed and len(shape) > 2:
        pytest.skip("only linear maps are stored transposed")
    tensor = torch.randn(shape)
    matrix = as_matrix(tensor, transposed)
    rows = shape[1] if transposed else shape[0]
    assert matrix.shape == (rows, tensor.numel() // rows if rows else shape[0])
    assert torch.equal(from_matrix(matrix, shape, transposed), tensor)


def test_a_convolution_is_the_linear_map_of_its_patches() -> None:
    convolution = torch.nn.Conv2d(3, 4, 2, bias=False)
    patch = torch.randn(1, 3, 2, 2)
    matrix = as_matrix(convolution.weight.detach(), transposed=False)
    torch.testing.assert_close(convolution(patch).reshape(-1), matrix @ patch.reshape(-1))


def test_integers_are_buffers(tmp_path: Path, tiny_models: Path) -> None:
    checkpoint = open_checkpoint(tiny_models / "base")
    info = next(iter(checkpoint.tensors.values()))
    integer = type(info)(info.name, torch.int64, info.shape, info.offset, info.n_bytes)
    assert assign(integer, None).role is Role.BUFFER
    assert assign(info, None).role is Role.EMBEDDING


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "`auto_map`.*never run"),
        ({"auto_map": {}}, "`auto_map`"),
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


def test_code_beside_a_checkpoint_never_runs(models: Path) -> None:
    (models / "base" / "evil.py").write_text(f"open({str(models / 'ran')!r}, 'w')")
    change_config(models / "base", auto_map={"AutoConfig": "evil.Config"}, architectures=["evil.Model"])
    with pytest.raises(CheckpointError):
        read_architecture(open_checkpoint(models / "base").config)
    assert not (models / "ran").exists()


@pytest.mark.parametrize("architectures", [["NoSuchClass"], ["os"], [], "ViTModel", [3], ["PreTrainedConfig"]])
def test_an_unknown_class_falls_back_to_the_plain_backbone(models: Path, architectures: Any) -> None:
    change_config(models / "base", architectures=architectures)
    owners = read_architecture(open_checkpoint(models / "base").config).owners
    assert owners["encoder.layer.0.intermediate.dense.weight"].kind == "linear"
