"""One adapter out: what PEFT makes of it is what the merged full model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from peft import PeftModel
from safetensors.torch import load_file
from tiny_adapters import build, load_adapter, logits, save_adapter

from sftm_app.api import merge_recipe
from sftm_app.errors import InputError
from sftm_app.output.report import Report, load_report
from sftm_app.planning.recipe import load_recipe, make_recipe
from sftm_app.session import open_session
from sftm_app.weights.checkpoint import open_checkpoint

# name -> kind of model, settings of the base, settings of each adapter
CASES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "llama": ("llama", {}, [{"task_type": "CAUSAL_LM"}, {"use_rslora": True, "r": 2}, {"layers_to_transform": [1]}]),
    "llama, norms": ("llama", {}, [{"modules_to_save": ["input_layernorm", "norm"]}, {}]),
    "llama, embeddings": ("llama", {}, [{"target_modules": ["embed_tokens", "lm_head", "k_proj"]}, {}]),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, [{"target_modules": ["embed_tokens", "v_proj"]}, {}]),
    "gpt2": ("gpt2", {}, [{"fan_in_fan_out": True}, {"bias": "lora_only", "fan_in_fan_out": True}]),
    "gpt2, all of it": (
        "gpt2",
        {"tie_word_embeddings": False},
        [{"target_modules": ["wte", "wpe", "c_proj"], "bias": "all"}, {"modules_to_save": ["ln_1", "wpe"]}],
    ),
    "bert": ("bert", {}, [{"task_type": "SEQ_CLS", "bias": "all"}, {"task_type": "SEQ_CLS", "r": 2}]),
    "vit": ("vit", {}, [{"modules_to_save": ["classifier"]}, {"bias": "all"}]),
    "t5": ("t5", {}, [{"task_type": "SEQ_2_SEQ_LM"}, {"target_modules": ["shared", "k", "wi"]}]),
}  # fmt: skip


def write(root: Path, name: str, kind: str, tasks: list[Path], method: str = "sftm", **output: Any) -> Report:
    recipe = make_recipe(root / "base", tasks, method, output={"kind": kind} | output, device="cpu")
    return merge_recipe(recipe, root / name, open_session())


@pytest.mark.parametrize("name", CASES)
def test_the_adapter_says_what_the_full_model_says(name: str, tmp_path: Path) -> None:
    kind, base, settings = CASES[name]
    model = build(kind, **base)
    model.save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{i}", kind, i, base, **each) for i, each in enumerate(settings, start=1)]
    write(tmp_path, "full", "model", tasks)
    report = write(tmp_path, "adapter", "adapter", tasks)
    assert not [text for text in report.warnings if "cannot carry" in text or "keeps" in text]
    expected = logits(type(model).from_pretrained(tmp_path / "full"), kind)
    assert (expected - logits(model, kind)).abs().max() > 1e-2
    adapted = load_adapter(tmp_path / "adapter", kind, **base)
    assert_close(logits(adapted, kind), expected)
    tied = [text for text in report.warnings if "twice" in text]
    assert bool(tied) == (name in ("llama, tied", "t5"))
    if not tied:
        merged = load_adapter(tmp_path / "adapter", kind, **base).merge_and_unload()
        assert_close(logits(merged, kind), expected)


@pytest.mark.parametrize("name", CASES)
def test_the_adapter_is_a_task_again(name: str, tmp_path: Path) -> None:
    """Merging the written adapter alone gives the full model once more: nothing of it is misread."""
    kind, base, settings = CASES[name]
    build(kind, **base).save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{i}", kind, i, base, **each) for i, each in enumerate(settings, start=1)]
    write(tmp_path, "full", "model", tasks)
    write(tmp_path, "adapter", "adapter", tasks)
    write(tmp_path, "again", "model", [tmp_path / "adapter"], "average")
    full, again = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "again"))
    for key, tensor in full.items():
        assert_close(again[key], tensor, 2e-5, what=key)


def test_every_scaling_is_one_and_ranks_add_up(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [
        save_adapter(tmp_path / "1", "llama", 1),
        save_adapter(tmp_path / "2", "llama", 2, layers_to_transform=[0]),
    ]
    report = write(tmp_path, "adapter", "adapter", tasks)
    opened = open_checkpoint(tmp_path / "adapter")
    assert opened.adapter is not None
    assert (opened.adapter.problems, opened.adapter.base_name) == ((), "base")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for layer, rank in ((0, 6), (1, 3)):
        module = f"model.layers.{layer}.self_attn.q_proj"
        assert module in settings["target_modules"]
        assert (opened.adapter.rank_at(module), opened.adapter.scaling_at(module)) == (rank, 1.0)
    peft = load_adapter(tmp_path / "adapter", "llama")
    assert {scale for module in peft.modules() if hasattr(module, "lora_A") for scale in module.scaling.values()} == {
        1.0
    }
    ranks = {record.name: record.figures.adapter_rank for record in report.tensors}
    assert ranks["model.layers.0.self_attn.q_proj.weight"] == 6
    # B and A share the gains evenly, so that neither overflows in half precision first.
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    A, B = tensors[f"{name}A.weight"], tensors[f"{name}B.weight"]
    assert_close(A.norm(dim=1), B.norm(dim=0))


def test_a_lower_rank_states_what_is_lost(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "llama", seed) for seed in (1, 2)]
    write(tmp_path, "full", "model", tasks, "average")
    report = write(tmp_path, "cut", "adapter", tasks, "average", rank=2)
    base, full = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "full"))
    kept, total, worst = 0.0, 0.0, 1.0
    for key in full:
        squares = (
            torch.linalg.svdvals((full[key] - base[key]).double()).square() if full[key].ndim == 2 else torch.zeros(1)
        )
        if squares.sum() > 1e-9:
            kept, total = kept + float(squares[:2].sum()), total + float(squares.sum())
            worst = min(worst, float(squares[:2].sum() / squares.sum()))
    said = next(text for text in report.warnings if "keeps" in text)
    assert said.startswith(f"Rank 2 keeps {kept / total:.1%} of the change")
    assert f"keeps {worst:.1%}" in said
    assert {record.figures.adapter_rank for record in report.tensors if record.figures.adapter_rank} == {2}
    assert list(load_report(tmp_path / "cut" / "sftm_report.json").warnings) == list(report.warnings)
    # Of all adapters of this rank none is nearer to the merged change (Eckart and Young).
    unloaded = load_adapter(tmp_path / "cut", "llama").merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    lost = torch.linalg.svdvals((full[name] - base[name]).double())[2:].square().sum().sqrt()
    assert_close(torch.linalg.vector_norm((unloaded[name] - full[name]).double()), lost, 1e-4)


def test_an_energy_gives_each_layer_its_own_rank(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "llama", seed, r=6) for seed in (1, 2)]
    report = write(tmp_path, "cut", "adapter", tasks, energy=0.8)
    figures = [record.figures for record in report.tensors if record.figures.adapter_rank]
    assert all(entry.energy_kept >= 0.8 for entry in figures)
    assert len({entry.adapter_rank for entry in figures}) > 1
    capped = write(tmp_path, "capped", "adapter", tasks, energy=0.8, rank=2)
    assert max(record.figures.adapter_rank or 0 for record in capped.tensors) == 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit", "t5", "bert"])
def test_a_full_fine_tune_becomes_an_adapter(kind: str, tmp_path: Path) -> None:
    """Of full rank it carries every linear layer, norm and bias exactly; tables and bare parameters are named."""
    model = build(kind)
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "task")
    report = write(tmp_path, "adapter", "adapter", [tmp_path / "task"], "average", energy=1.0)
    (said,) = [text for text in report.warnings if "cannot carry" in text]
    unloaded = load_adapter(tmp_path / "adapter", kind).merge_and_unload().state_dict()
    base, task = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "task"))
    loaded = type(model).from_pretrained(tmp_path / "task").state_dict()
    left_out = {record.name for record in report.tensors if record.figures.left_out}
    fresh = build(kind).state_dict()
    exact = 0
    for key, tensor in loaded.items():
        if (unloaded[key] - tensor).abs().max() <= 1e-6 * tensor.abs().max():
            exact += 1
        else:
            assert_close(unloaded[key], fresh[key], what=key)
    assert exact >= len(loaded) - 2 * len(left_out) - 3
    squares = {key: float((task[key].double() - base[key].double()).square().sum()) for key in task}
    share = sum(squares[key] for key in left_out) / sum(squares.values())
    assert f"{share:.1%} of the whole change" in said


def test_adapters_on_a_model_with_a_head_over_a_backbone(tmp_path: Path) -> None:
    """The merged adapter has the names of the adapters, so that it loads where they did."""
    model = build("bert")
    model.save_pretrained(tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "bert", seed) for seed in (1, 2)]
    write(tmp_path, "adapter", "adapter", tasks)
    shutil.move(tmp_path / "base", tmp_path / "backbone")
    shutil.move(tmp_path / "whole", tmp_path / "base")
    write(tmp_path, "full", "model", tasks)
    expected = logits(type(model).from_pretrained(tmp_path / "full"), "bert")
    assert_close(logits(load_adapter(tmp_path / "adapter", "bert"), "bert"), expected)


def test_types(tmp_path: Path) -> None:
    """The adapters' own type unless another is asked for."""
    build("llama").save_pretrained(tmp_path / "base")
    model = load_adapter(save_adapter(tmp_path / "1", "llama", 1), "llama")
    PeftModel.save_pretrained(model.bfloat16(), tmp_path / "half")
    for asked, tasks, expected in (
        (None, ["half"], torch.bfloat16),
        (None, ["half", "1"], torch.float32),
        ("float16", ["1"], torch.float16),
    ):
        name = f"{asked} {len(tasks)}"
        write(tmp_path, name, "adapter", [tmp_path / task for task in tasks], dtype=asked)
        assert {tensor.dtype for tensor in load_file(tmp_path / name / "adapter_model.safetensors").values()} == {
            expected
        }


def test_the_files_next_to_the_adapter(tmp_path: Path) -> None:
    build("bert").bert.save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "bert", seed, task_type="SEQ_CLS") for seed in (1, 2)]
    report = write(tmp_path, "adapter", "adapter", tasks)
    folder = tmp_path / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "heads",
        "sftm_recipe.yaml", "sftm_report.json",
    ]  # fmt: skip
    assert load_recipe(folder / "sftm_recipe.yaml").output.kind == "adapter"
    assert sorted(path.name for path in (folder / "heads").glob("*.safetensors")) == ["1.safetensors", "2.safetensors"]
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base_model: base" in card
    assert "PeftModel.from_pretrained" in card
    size = sum(tensor.nbytes for tensor in load_file(folder / "adapter_model.safetensors").values())
    assert report.output_bytes == size
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["inference_mode"]) == ("SEQ_CLS", True)


def test_no_linear_layer_no_adapter(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path / "task")
    with pytest.raises(InputError, match="nothing to put into an adapter"):
        write(tmp_path, "adapter", "adapter", [tmp_path / "task"], rank=4)
    assert not (tmp_path / "adapter").exists()
    assert not list(tmp_path.glob("*.partial"))
