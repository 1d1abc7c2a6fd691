"""Every setting that changes what a model computes and differs from the base's is said, with both values (A19)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_adapters import build
from tiny_checkpoints import change_config
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from sftm_app import check
from sftm_app.architecture.settings import MAX_SETTINGS, flat_settings

ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def differences(root: Path, **changes: Any) -> list[str]:
    """The notes on the config of a task that has these settings."""
    model = build("llama")
    model.save_pretrained(root / "base")
    model.save_pretrained(root / "a")
    change_config(root / "a", **changes)
    return [note for note in check(root / "base", [root / "a"]).notes if "config differs" in note]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_parameters.rope_theta (500000.0, in the",
        ),
        ({"rope_parameters": ROPE}, "rope_parameters.factor (2.0, in the base not set)"),
        (
            {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": ROPE},
            "rope_type ('linear', in the base 'def",
        ),
        ({"hidden_act": "gelu"}, "hidden_act ('gelu', in the base 'silu')"),
        ({"rms_norm_eps": 1e-4}, "rms_norm_eps (0.0001, in the base 1e-06)"),
        ({"sliding_window": 4}, "sliding_window (4, in the base not set)"),
        ({"attention_bias": True}, "attention_bias (True, in the base False)"),
        ({"scaling": {"of": {"queries": 2}}}, "scaling.of.queries (2, in the base not set)"),
    ],
)
def test_what_changes_the_computation_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (note,) = differences(tmp_path, **changes)
    assert said in note and note.endswith("; the merged model has the base's.")


def test_what_does_not_is_not(tmp_path: Path) -> None:
    old = {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None}  # as older versions wrote the same
    training = {"attention_dropout": 0.5, "initializer_range": 0.5, "use_cache": False, "torch_dtype": "float16"}
    saving = {"transformers_version": "4.1", "_name_or_path": "x", "architectures": ["LlamaModel"], "eos_token_id": 2}
    assert differences(tmp_path, **old, **training, **saving) == []


def test_a_part_is_compared_with_its_part(tmp_path: Path) -> None:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 9, "max_position_embeddings": 8}
    config = CLIPConfig(vision_config=tower | {"image_size": 8, "patch_size": 4}, text_config=text, projection_dim=8)
    model = CLIPModel(config)
    model.save_pretrained(tmp_path / "base")
    CLIPVisionModel(config.vision_config).save_pretrained(tmp_path / "a")
    names = [note for note in check(tmp_path / "base", [tmp_path / "a"]).notes if "config differs" in note]
    assert names == []
    change_config(tmp_path / "a", hidden_act="gelu")
    (note,) = [note for note in check(tmp_path / "base", [tmp_path / "a"]).notes if "config differs" in note]
    assert "hidden_act ('gelu', in the base 'quick_gelu')" in note


def test_huge_configs_are_cut() -> None:
    found = flat_settings({"many": {str(i): i for i in range(2 * MAX_SETTINGS)}})
    assert len(found) == MAX_SETTINGS
    long = [flat_settings({"x": [0] * 10_000 + [last]})["x"] for last in (1, 2)]
    assert long[0] != long[1] and max(map(len, long)) < 200
    assert json.dumps(found)
