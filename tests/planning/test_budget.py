"""A budget of memory: refused before any work, with the ranks that fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from sftm_app.errors import RecipeError, ResourceError
from sftm_app.pipeline import prepare
from sftm_app.planning import budget
from sftm_app.planning.budget import check_budget, fitting_rank, memory_model
from sftm_app.planning.memory import peak_bytes
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import make_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.session import Session
from sftm_app.units import format_bytes, format_distinct

RecipeFor = Callable[..., Any]
PlanFor = Callable[..., Plan]


@pytest.fixture
def recipe_for(tmp_path: Path) -> RecipeFor:
    """Recipes over a base and three tasks of one long matrix, large enough for a rank to make a difference."""
    config = {"model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": 96, "num_hidden_layers": 1}
    config |= {"intermediate_size": 4096, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8}
    for index in range(4):
        folder = tmp_path / f"model{index}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"layers.0.mlp.up_proj.weight": torch.full((4096, 96), float(index))}, folder / "model.safetensors")
    folders = [tmp_path / f"model{index}" for index in range(4)]
    return lambda **changes: make_recipe(folders[0], folders[1:], **{"device": "cpu"} | changes)


@pytest.fixture
def plan_for(recipe_for: RecipeFor, session: Session) -> PlanFor:
    """Plans for these recipes; keyword arguments as for make_recipe."""
    return lambda **changes: prepare(recipe_for(**changes), session)


def needed(plan: Plan, rank: int | None) -> int:
    """Bytes that a merge of this rank takes."""
    model = memory_model(plan, 1)
    return peak_bytes(plan.entries, dataclasses.replace(model, params=dataclasses.replace(model.params, rank=rank)))


def best(plan: Plan, n_bytes: int) -> int:
    return fitting_rank(plan.entries, memory_model(plan, 1), n_bytes)


@pytest.mark.parametrize("wanted", [1, 3, 7])
def test_the_rank_that_fits_is_the_highest_that_does(plan_for: PlanFor, wanted: int) -> None:
    plan = plan_for()
    assert needed(plan, wanted) < needed(plan, wanted + 1), "the layers are too small for this to tell anything"
    assert needed(plan, wanted) == plan_for(params={"rank": wanted}).peak_bytes
    assert best(plan, needed(plan, wanted)) == wanted
    assert best(plan, needed(plan, wanted + 1) - 1) == wanted


def test_every_rank_up_to_the_one_that_fits_does(plan_for: PlanFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even though the system of a few features more may take less than that of a few."""
    monkeypatch.setattr("sftm_app.linalg.workspace.AUTO_DIRECT_MAX", 60)
    monkeypatch.setattr(budget, "AUTO_DIRECT_MAX", 60)
    plan = plan_for()
    needs = [needed(plan, rank) for rank in range(1, 97)]
    assert any(needs[i + 1] < needs[i] for i in range(95)), "nothing falls here"
    for limit in sorted(set(needs))[::3]:
        rank = best(plan, limit)
        assert all(need <= limit for need in needs[:rank]) and (rank == 96 or max(needs[: rank + 1]) > limit)


def test_all_or_nothing_may_fit(plan_for: PlanFor) -> None:
    plan = plan_for()
    side = max(min(part.shape_in(entry.output.shape)) for entry in plan.entries for part in entry.parts)
    assert best(plan, plan.peak_bytes) == side
    assert best(plan, 1000) == 0
    assert best(plan_for(method="average"), 10**12) == 0


def test_a_merge_beyond_its_budget_is_refused_with_the_ranks_that_fit(plan_for: PlanFor) -> None:
    within = needed(plan_for(), 3)
    tight = plan_for(memory=f"{within}B")
    sentence = r"its budget \(`memory`\) is .+B\. Ranks up to 3 fit: lower the rank, or allow more memory\."
    with pytest.raises(ResourceError, match=sentence):
        check_budget(tight, 1)
    fits = plan_for(memory=f"{within}B", params={"rank": 3})
    assert fits.peak_bytes <= within
    check_budget(fits, 1)
    # With as many digits as it takes to see the difference.
    peak = plan_for().peak_bytes
    more, less = format_distinct(peak, peak - 1)
    with pytest.raises(ResourceError, match=rf"may need {more} of memory, and its budget \(`memory`\) is {less}\. "):
        check_budget(plan_for(memory=f"{peak - 1}B"), 1)
    with pytest.raises(ResourceError, match="No rank fits: allow more memory, or merge fewer tasks"):
        check_budget(plan_for(memory="10KB"), 1)
    with pytest.raises(ResourceError, match=r"is 10 kB\. Allow more memory"):
        check_budget(plan_for(method="average", memory="10KB"), 1)
    on_gpu = dataclasses.replace(plan_for(memory="10KB"), device=torch.device("cuda"))
    check_budget(on_gpu, 1)  # whose layers go to the CPU then
    note = budget.budget_note(on_gpu.entries, memory_model(on_gpu, 1), on_gpu.peak_bytes, on_gpu.memory_bytes)
    assert note is None


def test_the_budget_of_the_session_holds_where_the_recipe_has_none(recipe_for: RecipeFor, session: Session) -> None:
    tight = dataclasses.replace(session, memory="10KB")
    with pytest.raises(ResourceError, match="is 10 kB"):
        check_budget(prepare(recipe_for(), tight), 1)
    assert prepare(recipe_for(memory="4GB"), tight).memory_bytes == 4 * 10**9
    check_budget(prepare(recipe_for(memory="4GB"), tight), 1)


def test_the_plan_says_what_fits(plan_for: PlanFor, monkeypatch: pytest.MonkeyPatch) -> None:
    within = needed(plan_for(), 3)
    assert plan_for().cost.budget is None
    cost = plan_for(memory=f"{within}B").cost
    note = f"The merge needs more than the budget of {format_bytes(within)}. "
    note += "Ranks up to 3 fit: lower the rank, or allow more memory."
    assert cost.budget == note and note in cost.sentences()
    assert "The merge fits the budget of 4 GB; so do ranks up to" in str(plan_for(memory="4GB").cost.budget)
    assert plan_for(method="average", memory="4GB").cost.budget == "The merge fits the budget of 4 GB."
    free = psutil.virtual_memory()._replace(available=within)
    monkeypatch.setattr(budget.psutil, "virtual_memory", lambda: free)
    assert f"The merge needs more than the {format_bytes(within)} that are free. Ranks up to 3 fit" in str(
        plan_for().cost.budget
    )


def test_the_budget_is_part_of_a_recipe(recipe_for: RecipeFor) -> None:
    recipe = recipe_for(memory="1.5GB")
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe
    with pytest.raises(RecipeError, match=r"memory: 'much' is not a size\. Write it like"):
        recipe_for(memory="much")
