"""The reference work has the shapes it claims, and is the same whenever it is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from closeness import assert_close
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from bench.exact import exact_change
from bench.reference import (
    CHANGE,
    SHARED,
    SMALL_LANGUAGE,
    SMALL_TOWER,
    Directions,
    Language,
    Tower,
    adapter_pairs,
    densify,
    language_config,
    language_shapes,
    make_adapters,
    make_towers,
    tower_config,
    tower_shapes,
)


def test_the_tower_is_vit_b_32_and_the_language_model_smollm2_135m() -> None:
    with torch.device("meta"):
        vision = CLIPVisionModel(CLIPVisionConfig(**tower_config(Tower())))
        language = LlamaForCausalLM(LlamaConfig(**language_config(Language())))
    assert sum(parameter.numel() for parameter in vision.parameters()) == 87_456_000
    assert {f"vision_model.{name}": tuple(value.shape) for name, value in vision.named_parameters()} == tower_shapes(
        Tower()
    )
    assert sum(parameter.numel() for parameter in language.parameters()) == 134_515_008
    assert {name: tuple(value.shape) for name, value in language.named_parameters()} == language_shapes(Language())


def test_two_makes_are_the_same_files_and_tasks_differ(tmp_path: Path) -> None:
    first, second = (make_towers(tmp_path / name, SMALL_TOWER, 2) for name in "ab")
    files = [
        [(folder / "model.safetensors").read_bytes() for folder in (made.base, *made.tasks)] for made in (first, second)
    ]
    assert files[0] == files[1]
    assert len(set(files[0])) == 3
    info = CLIPVisionModel.from_pretrained(first.tasks[0], output_loading_info=True)[1]
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_changes_decay_and_share_a_part() -> None:
    """The gains of one task's change fall; two tasks agree in about the share of energy that is common."""
    directions = Directions()
    one, other = (directions.change(task, "layer", (96, 48)).double() for task in ("a", "b"))
    gains = torch.linalg.svdvals(one)
    assert gains[0] > 5 * gains[-1] and float(gains.norm()) == pytest.approx(1, abs=0.15)
    assert float((one * other).sum()) == pytest.approx(SHARED, abs=0.08)


def test_a_fine_tune_moved_as_far_as_it_should(tmp_path: Path) -> None:
    made = make_towers(tmp_path / "made", SMALL_TOWER, 1)
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    base, task = (load_file(folder / "model.safetensors")[name] for folder in (made.base, made.tasks[0]))
    assert float((task - base).norm() / base.norm()) == pytest.approx(CHANGE, rel=0.2)


def test_adapters_load_with_peft_and_densify_gives_the_same_model(tmp_path: Path) -> None:
    made = make_adapters(tmp_path / "made", SMALL_LANGUAGE, 2, 4)
    folded = densify(made.tasks[1], made.base, tmp_path / "folded")
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(made.base)
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, made.tasks[1])(tokens).logits
        dense = AutoModelForCausalLM.from_pretrained(folded)(tokens).logits
    assert_close(adapted, dense)
    assert float((adapted - plain).abs().max()) > 1e-4
    pairs = dict(adapter_pairs("task1", SMALL_LANGUAGE, 4))
    assert len(pairs) == 14 and all(A.shape[0] == B.shape[1] == 4 for A, B in pairs.values())


def test_a_folder_with_something_else_or_in_the_repository_is_refused(tmp_path: Path) -> None:
    made = make_towers(tmp_path / "made", SMALL_TOWER, 1)
    assert make_towers(tmp_path / "made", SMALL_TOWER, 1) == made
    with pytest.raises(SystemExit, match="something else"):
        make_towers(tmp_path / "made", SMALL_TOWER, 2)
    with pytest.raises(SystemExit, match="repository"):
        make_towers(Path(__file__).parent / "made", SMALL_TOWER, 1)
    assert json.loads((tmp_path / "made" / "reference.json").read_text())["tasks"] == 1


def test_the_float64_change_keeps_every_gain() -> None:
    """What the variant `readout` asks for: u^T D v = s for each feature of each task."""
    torch.manual_seed(0)
    matrices = [torch.randn(9, 7) for _ in range(3)]
    change = exact_change(matrices, 3)
    for matrix in matrices:
        U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        assert_close((U[:, :3].T @ change @ Vh[:3].T).diagonal(), S[:3])
