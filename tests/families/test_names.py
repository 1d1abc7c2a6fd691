"""Names that the config's class does not know: wrappers, foreign prefixes, and parts that the class leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from direct_merge import arrays, direct_merge, distance
from family_builders import CAUSAL, FAMILIES, SPECIAL, TASKS, TEXT, Family, save_family, tokens
from test_families import TOLERANCE
from tiny_checkpoints import change_config, change_weights

from sftm_app.api import check, merge

XLNET = Family(
    "XLNetConfig",
    SPECIAL | {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 12, "vocab_size": 19},
    "XLNetModel",
    "XLNetModel",
    tokens,
)
BERT = Family("BertConfig", TEXT, "BertModel", "BertModel", tokens)


def put_before(folder: Path, prefix: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    change_weights(folder / "model.safetensors", change)


def merge_all(root: Path) -> dict[str, float]:
    """Merge the three tasks; each tensor's error against the direct merge, by its name without the base's prefix."""
    sound, tasks = arrays(root / "base"), [arrays(root / name) for name in TASKS]
    expected = {name: direct_merge(name, ours, [task[name] for task in tasks]) for name, ours in sound.items()}
    return {name: distance(arrays(root / "out")[name], expected[name], ours) for name, ours in sound.items()}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "net.backbone."])
@pytest.mark.parametrize("who", ["base and tasks", "one task"])
def test_prefixes_of_wrappers_and_of_unknown_classes(prefix: str, who: str, tmp_path: Path) -> None:
    save_family(tmp_path, BERT)
    expected = {
        name: direct_merge(name, ours, [arrays(tmp_path / task)[name] for task in TASKS])
        for name, ours in arrays(tmp_path / "base").items()
    }
    wrapped = ("b",) if who == "one task" else ("base", *TASKS)
    for folder in wrapped:
        put_before(tmp_path / folder, prefix)
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    base, out = arrays(tmp_path / "base"), arrays(tmp_path / "out")
    assert set(out) == set(base)
    own = prefix if "base" in wrapped else ""
    assert {
        name for name in expected if distance(out[own + name], expected[name], base[own + name]) > TOLERANCE
    } == set()


def test_a_prefix_without_a_config(tmp_path: Path) -> None:
    save_family(tmp_path, BERT)
    base, tasks = arrays(tmp_path / "base"), [arrays(tmp_path / name) for name in TASKS]
    for folder in ("base", *TASKS):
        (tmp_path / folder / "config.json").unlink()
    put_before(tmp_path / "a", "_orig_mod.")
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    name = "encoder.layer.0.intermediate.dense.weight"
    expected = direct_merge(name, base[name], [task[name] for task in tasks])
    assert distance(arrays(tmp_path / "out")[name], expected, base[name]) < TOLERANCE


def test_matrices_that_a_composite_module_holds_are_superposed(tmp_path: Path) -> None:
    save_family(tmp_path, XLNET)
    report = merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    roles = {record.name.rpartition(".")[2]: record.role for record in report.tensors if "rel_attn." in record.name}
    assert {name for name, role in roles.items() if role == "matrix"} >= {"q", "k", "v", "o", "r"}
    assert (roles["r_w_bias"], roles["seg_embed"]) == ("embedding", "embedding")
    base, out = arrays(tmp_path / "base"), arrays(tmp_path / "out")
    name = "layer.0.rel_attn.q"
    expected = direct_merge(name, base[name], [arrays(tmp_path / task)[name] for task in TASKS])
    assert distance(out[name], expected, base[name]) < TOLERANCE


def test_trained_layers_that_the_class_ignores_are_merged_and_said(tmp_path: Path) -> None:
    settings = CAUSAL | {"num_hidden_layers": 1, "layer_types": ["full_attention"], "num_experts": 2}
    settings |= {"num_experts_per_tok": 1, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}
    save_family(tmp_path, Family("Qwen3NextConfig", settings, "Qwen3NextForCausalLM", "Qwen3NextForCausalLM", tokens))
    generator = torch.Generator().manual_seed(1)
    base, name = torch.randn(6, 8, generator=generator), "mtp.layers.0.self_attn.q_proj.weight"
    changes = {task: 0.1 * torch.randn(6, 8, generator=generator) for task in TASKS}
    for folder in ("base", *TASKS):
        tensor = base + changes.get(folder, torch.zeros(6, 8))
        change_weights(tmp_path / folder / "model.safetensors", lambda tensors, it=tensor: tensors.update({name: it}))
    report = merge(tmp_path / "base", [tmp_path / task for task in TASKS], tmp_path / "out", device="cpu")
    (record,) = (record for record in report.tensors if record.name == name)
    assert (record.role, record.why[:7]) == ("matrix", "guessed")
    expected = direct_merge(name, base.double().numpy(), [(base + c).double().numpy() for c in changes.values()])
    assert distance(arrays(tmp_path / "out")[name], expected, base.double().numpy()) < TOLERANCE
    notes = check(tmp_path / "base", [tmp_path / "a"]).notes
    assert any("1 tensors have no place in Qwen3NextForCausalLM: mtp." in note for note in notes)


@pytest.mark.parametrize("config", [{"architecture": "vit_tiny", "num_classes": 3}, {"_class_name": "Net"}, {"n": 1}])
def test_configs_of_other_libraries_leave_the_roles_to_be_guessed(config: dict[str, object], tmp_path: Path) -> None:
    save_family(tmp_path, BERT)
    for folder in ("base", *TASKS):
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    found = check(tmp_path / "base", [tmp_path / "a"])
    assert "config.json names no `model_type`" in found.notes[0] and "guessed" in found.notes[0]
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    errors = merge_all(tmp_path)
    assert errors["encoder.layer.0.intermediate.dense.weight"] < TOLERANCE
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
def test_weights_called_as_diffusers_calls_them(max_shard_size: str, tmp_path: Path) -> None:
    save_family(tmp_path, BERT)
    name = "diffusion_pytorch_model"
    for folder in ("base", *TASKS):
        (tmp_path / folder / "config.json").write_text(json.dumps({"_class_name": "Net"}))
        (tmp_path / folder / "model.safetensors").rename(tmp_path / folder / f"{name}.safetensors")
    out = tmp_path / "out"
    merge(tmp_path / "base", [tmp_path / task for task in TASKS], out, device="cpu", max_shard_size=max_shard_size)
    files = sorted(file.name for file in out.glob("*.safetensors*"))
    if max_shard_size == "5GB":
        assert files == [f"{name}.safetensors"]
    else:
        assert all(file.startswith(f"{name}-0000") for file in files[:-1])
        assert files[-1] == f"{name}.safetensors.index.json"
    assert check(out, [tmp_path / "a"]).problems == ()


def test_auto_map_of_a_known_type_and_infinities_in_a_config(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["phi3"])
    for folder in ("base", *TASKS):
        change_config(tmp_path / folder, auto_map={"AutoModel": "evil.Model"})
    report = merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    assert {record.why.partition(";")[0] for record in report.tensors if record.role == "matrix"} == {"owned by Linear"}
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())

    settings = {"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "num_heads": 4}
    mamba = Family("Mamba2Config", settings | {"head_dim": 4, "n_groups": 1}, "Mamba2Model", "Mamba2Model", tokens)
    save_family(tmp_path / "mamba", mamba)
    assert hf.Mamba2Config.from_pretrained(tmp_path / "mamba" / "base").time_step_limit[1] == float("inf")
    assert check(tmp_path / "mamba" / "base", [tmp_path / "mamba" / name for name in TASKS]).problems == ()
