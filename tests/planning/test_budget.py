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
from sftm_app.planning import budget
from sftm_app.planning.budget import budget_note, check_budget, fitting_rank
from sftm_app.planning.cost import estimate
from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import check_recipe, make_plan, plan_for
from sftm_app.planning.recipe import make_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.units import format_distinct

RecipeFor = Callable[..., Any]


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


def plan_of(recipe: Any) -> Plan:
    return plan_for(recipe, check_recipe(recipe).require())


def needed(recipe: Any, rank: int | None) -> int:
    return plan_of(dataclasses.replace(recipe, params=dataclasses.replace(recipe.params, rank=rank))).peak_bytes


@pytest.mark.parametrize("wanted", [1, 3, 7])
def test_the_rank_that_fits_is_the_highest_that_does(recipe_for: RecipeFor, wanted: int) -> None:
    recipe = recipe_for()
    assert needed(recipe, wanted) < needed(recipe, wanted + 1), "the layers are too small for this to tell anything"
    assert fitting_rank(plan_of(recipe), needed(recipe, wanted)) == wanted
    assert fitting_rank(plan_of(recipe), needed(recipe, wanted + 1) - 1) == wanted


def test_every_rank_up_to_the_one_that_fits_does(recipe_for: RecipeFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the system of a few features more may take less than that of a few."""
    monkeypatch.setattr("sftm_app.planning.memory.AUTO_DIRECT_MAX", 60)
    monkeypatch.setattr(budget, "AUTO_DIRECT_MAX", 60)
    recipe = recipe_for()
    needs = [needed(recipe, rank) for rank in range(1, 97)]
    assert any(needs[i + 1] < needs[i] for i in range(95)), "nothing falls here"
    for limit in sorted(set(needs))[::3]:
        best = fitting_rank(plan_of(recipe), limit)
        assert all(need <= limit for need in needs[:best]) and (best == 96 or max(needs[: best + 1]) > limit)


def test_all_or_nothing_may_fit(recipe_for: RecipeFor) -> None:
    plan = plan_of(recipe_for())
    side = max(min(part.shape_in(entry.output.shape)) for entry in plan.entries for part in entry.parts)
    assert fitting_rank(plan, plan.peak_bytes) == side
    assert fitting_rank(plan, 1000) == 0
    assert fitting_rank(plan_of(recipe_for(method="average")), 10**12) == 0


def test_a_merge_beyond_its_budget_is_refused_with_the_ranks_that_fit(recipe_for: RecipeFor) -> None:
    within = needed(recipe_for(), 3)
    recipe = recipe_for(memory=f"{within}B")
    with pytest.raises(ResourceError, match=r"its budget \(`memory`\) is .+B\. Ranks up to 3 fit: set the rank"):
        make_plan(recipe)
    fits = dataclasses.replace(recipe, params=dataclasses.replace(recipe.params, rank=3))
    assert make_plan(fits).peak_bytes <= within
    # With as many digits as it takes to tell the two apart.
    close = plan_of(recipe_for())
    tight = plan_of(recipe_for(memory=f"{close.peak_bytes - 1}B"))
    more, less = format_distinct(close.peak_bytes, close.peak_bytes - 1)
    with pytest.raises(ResourceError, match=rf"may need {more} of memory, and its budget \(`memory`\) is {less}\. "):
        check_budget(tight)
    with pytest.raises(ResourceError, match="No rank fits: allow more memory, or merge fewer tasks"):
        check_budget(plan_of(recipe_for(memory="10KB")))
    with pytest.raises(ResourceError, match=r"is 10 kB\. Allow more memory"):
        check_budget(plan_of(recipe_for(method="average", memory="10KB")))
    on_gpu = dataclasses.replace(plan_of(recipe_for(memory="10KB")), device=torch.device("cuda"))
    check_budget(on_gpu)  # whose layers go to the CPU then
    assert budget_note(on_gpu) is None


def test_the_plan_says_what_fits(recipe_for: RecipeFor, monkeypatch: pytest.MonkeyPatch) -> None:
    within = needed(recipe_for(), 3)
    assert budget_note(plan_of(recipe_for())) is None
    plan = plan_of(recipe_for(memory=f"{within}B"))
    note = f"That is more than the budget of {within}B. Ranks up to 3 fit: set the rank to that or less, or allow more "
    note += "memory."
    assert budget_note(plan) == note and note in estimate(plan).sentences()
    assert "keeps to the budget of 4GB, as ranks up to" in str(budget_note(plan_of(recipe_for(memory="4GB"))))
    average = plan_of(recipe_for(method="average", memory="4GB"))
    assert budget_note(average) == "That keeps to the budget of 4GB."
    free = psutil.virtual_memory()._replace(available=within)
    monkeypatch.setattr(budget.psutil, "virtual_memory", lambda: free)
    assert "more than the" in str(budget_note(plan_of(recipe_for()))) and "Ranks up to 3 fit" in str(
        budget_note(plan_of(recipe_for()))
    )


def test_the_budget_is_part_of_a_recipe(recipe_for: RecipeFor) -> None:
    recipe = recipe_for(memory="1.5GB")
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe
    with pytest.raises(RecipeError, match=r"memory: 'much' is no size\. Write it like"):
        recipe_for(memory="much")
