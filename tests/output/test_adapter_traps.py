"""Adapters together with roles, heads and other tasks: what could be merged wrongly without a word."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import build, save_adapter

from sftm_app import check, merge
from sftm_app.errors import CompatibilityError
from sftm_app.inspection.factors import factorise_layer, layer_key
from sftm_app.inspection.layers import map_layers
from sftm_app.linalg.low_rank import LowRank, norm
from sftm_app.session import Session
from sftm_app.weights.checkpoint import open_checkpoint


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("llama", {"*q_proj.weight": "matrix_transposed"}),
        ("gpt2", {"*c_fc.weight": "matrix"}),
    ],
)
def test_a_role_cannot_turn_an_adapter_s_factors(kind: str, role: dict[str, str], tmp_path: Path) -> None:
    build(kind).save_pretrained(tmp_path / "base")
    task = save_adapter(tmp_path / "task", kind, 1)
    with pytest.raises(CompatibilityError, match=r"the role set for it says otherwise"):
        merge(tmp_path / "base", [task], tmp_path / "out", roles=role)
    assert not (tmp_path / "out").exists()


def test_a_role_that_agrees_or_only_names_another_rule_is_fine(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path / "base")
    task = save_adapter(tmp_path / "task", "gpt2", 1)
    merge(tmp_path / "base", [task], tmp_path / "plain", "average")
    merge(tmp_path / "base", [task], tmp_path / "same", "average", roles={"*c_fc.weight": "matrix_transposed"})
    merge(tmp_path / "base", [task], tmp_path / "other", "average", roles={"*c_fc.weight": "embedding"})
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "same", "other")]
    assert weights[0] == weights[1] == weights[2]


def test_factors_on_another_task_s_head_are_refused(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "base")
    other = build("bert", num_labels=5)
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight.add_(0.1)
    other.save_pretrained(tmp_path / "full")
    task = save_adapter(tmp_path / "task", "bert", 1, target_modules=["query", "classifier"], task_type=None)
    problems = check(tmp_path / "base", [tmp_path / "full", task]).problems
    assert any("by LoRA, which is full's own head" in problem for problem in problems)
    assert not check(tmp_path / "base", [task]).problems


@pytest.mark.usefixtures("small_layers_cached")
def test_another_alpha_gives_other_factors_and_another_hash(tmp_path: Path, cached_session: Session) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    task = save_adapter(tmp_path / "task", "llama", 1)

    def look() -> tuple[float, Hashable]:
        found = check(tmp_path / "base", [task]).require()
        layer = next(layer for layer in map_layers(found) if "q_proj" in layer.name)
        made = factorise_layer(found, layer, cached_session.cache)
        return float(made.factors[0].S[0]), layer_key(found, layer)

    before, config = look(), task / "adapter_config.json"
    assert look() == before
    hashed = merge(tmp_path / "base", [task], tmp_path / "first").inputs[1].sha256
    values: dict[str, Any] = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"lora_alpha": 10 * values["lora_alpha"]}))
    after = look()
    assert after[0] == pytest.approx(10 * before[0]) and after[1] != before[1]
    again = merge(tmp_path / "base", [task], tmp_path / "second").inputs[1].sha256
    assert {name for name in hashed if hashed[name] != again[name]} == {"adapter_config.json"}


def test_changes_that_nearly_cancel_are_still_there() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(40, 3, generator=generator), torch.randn(3, 30, generator=generator)
    both = LowRank(torch.cat([left, -(1 + 3e-4) * left], 1), torch.cat([right, right]))
    exact = torch.linalg.vector_norm(both.left.double() @ both.right.double())
    assert norm(both) == pytest.approx(float(exact), rel=1e-6)
    assert norm(both) > 0


def test_an_adapter_s_head_is_saved_with_what_it_is(tmp_path: Path) -> None:
    build("bert").bert.save_pretrained(tmp_path / "base")
    task = save_adapter(tmp_path / "task", "bert", 1, task_type="SEQ_CLS")
    assert open_checkpoint(task).adapter is not None
    merge(tmp_path / "base", [task], tmp_path / "out")
    named = json.loads((tmp_path / "out" / "heads" / "task.json").read_text())
    assert named == {"peft_type": "LORA", "task_type": "SEQ_CLS"}
