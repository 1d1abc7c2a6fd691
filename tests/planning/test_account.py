"""Every tensor of every task is accounted for, once (A22)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import build, save_adapter

from sftm_app.pipeline import prepare
from sftm_app.planning.account import accounts
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import open_session


def test_a_model_with_a_head(recipe_for: Callable[..., Any]) -> None:
    plan = prepare(recipe_for("ab"), open_session())
    for index, one in enumerate(accounts(plan)):
        tensors = plan.preflight.tasks[index].checkpoint.tensors
        assert sorted(name for names in one.fates.values() for name in names) == sorted(tensors)
        assert one.fates["kept as its own head", ""] == ("classifier.bias", "classifier.weight")
        n_merged = sum(entry.rule == "method" for entry in plan.entries)
        assert len(one.fates["merged", ""]) == n_merged
    assert accounts(plan)[0].sentence() == "a, 40 tensors: merged 13, averaged 25, kept as its own head 2."


@pytest.mark.parametrize("extra", ["", "table"])
def test_an_adapter(tmp_path: Path, extra: str) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    task = save_adapter(tmp_path / "a", "llama", 1)
    file = task / "adapter_model.safetensors"
    tensors = load_file(file)
    if extra:
        tensors["base_model.model.model.embed_tokens.original_module.weight"] = torch.zeros(3, 2)
    save_file(tensors, file)
    plan = prepare(make_recipe(tmp_path / "base", [task], device="cpu"), open_session())
    (one,) = accounts(plan)
    assert sum(map(len, one.fates.values())) == one.n_tensors == len(tensors)
    copies = one.fates.get(("not merged", "copies that PEFT saves with the pairs"), ())
    assert len(copies) == (1 if extra else 0)
    assert (": base_model.model.model.embed_tokens.original_module.weight)" in one.sentence()) == bool(extra)


def test_buffers_and_tensors_that_the_recipe_keeps(recipe_for: Callable[..., Any]) -> None:
    plan = prepare(recipe_for("a", roles={"*layernorm*": "copy"}), open_session())
    (one,) = accounts(plan)
    kept = one.fates["kept from the base", "by the recipe"]
    assert kept and all("layernorm" in name for name in kept)
    assert f"kept from the base {len(kept)} (by the recipe: {kept[0]}, {kept[1]}, {kept[2]}, ...)" in one.sentence()
