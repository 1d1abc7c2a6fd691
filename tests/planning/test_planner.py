"""What a plan decides: rules by role and method, what is measured, where to compute; and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hollow_models import hollow
from tiny_adapters import build, save_adapter

from sftm_app import pipeline
from sftm_app.api import merge_recipe
from sftm_app.errors import CompatibilityError, InputError, RecipeError
from sftm_app.methods import METHODS
from sftm_app.pipeline import prepare
from sftm_app.planning import planner
from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import MEASURED_SIDE, make_plan, open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session


@pytest.mark.parametrize("name", METHODS)
def test_the_rules_are_those_that_the_method_names(recipe_for: Callable[..., Any], session: Session, name: str) -> None:
    method = METHODS[name]
    plan = prepare(recipe_for("ab", method=name), session)
    assert plan.method is method and plan.device == torch.device("cpu")
    seen = set()
    for entry in plan.entries:
        role = entry.role.value
        seen.add(role)
        assert entry.rule == ("method" if role == "matrix" else method.roles[role])
        assert entry.elementwise is (entry.rule in ("sum", "average") or method.elementwise)
        assert bool(entry.parts) is (role == "matrix")
    assert seen == {"matrix", "embedding", "bias", "norm"}


@pytest.fixture
def large(tmp_path: Path, session: Session) -> Callable[..., Plan]:
    """Plans of models of one matrix with this shorter side; keyword arguments as for make_recipe."""
    made: dict[int, list[Path]] = {}

    def plan(side: int, **changes: Any) -> Plan:
        if side not in made:
            made[side] = [hollow(tmp_path / f"{side} {index}", 2048, side) for index in range(3)]
        base, *tasks = made[side]
        recipe = make_recipe(base, tasks, **{"device": "cpu"} | changes)
        return make_plan(recipe, open_inputs(recipe, session), session)

    return plan


@pytest.mark.parametrize("name", METHODS)
def test_layers_are_measured_where_it_is_quick_or_asked_for(large: Callable[..., Plan], name: str) -> None:
    def measured(side: int, measure: str) -> bool:
        entries = large(side, method=name, measure=measure).entries
        assert not any(entry.measured for entry in entries if entry.role.value != "matrix")
        return next(entry.measured for entry in entries if entry.role.value == "matrix")

    assert measured(MEASURED_SIDE, "auto") and measured(MEASURED_SIDE, "all") and not measured(MEASURED_SIDE, "none")
    # A method that needs features has them at hand.
    assert measured(MEASURED_SIDE + 2, "auto") is (METHODS[name].features is not None)
    assert measured(MEASURED_SIDE + 2, "all")


def test_what_is_measured_is_not_merged_in_pieces(large: Callable[..., Plan]) -> None:
    for measure, pieces in (("all", False), ("none", True)):
        plan = large(64, method="average", measure=measure)
        assert [entry.in_pieces for entry in plan.entries if entry.role.value == "matrix"] == [pieces]
        assert all(entry.in_pieces for entry in plan.entries if entry.role.value != "matrix")
    assert not any(entry.in_pieces for entry in large(64, method="ties", measure="none").entries)


def test_an_adapter_of_full_checkpoints_needs_a_size(recipe_for: Callable[..., Any], session: Session) -> None:
    with pytest.raises(RecipeError, match=r"a, b are full checkpoints.*Give it a rank"):
        prepare(recipe_for("ab", output={"kind": "adapter"}), session)
    for size in ({"rank": 4}, {"energy": 0.9}):
        plan = prepare(recipe_for("ab", output={"kind": "adapter"} | size), session)
        assert plan.writes_adapter and plan.output_bytes > 0


def test_an_adapter_of_adapters_is_exact(tmp_path: Path, session: Session) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / name, "llama", seed) for seed, name in enumerate("ab", 1)]
    plan = prepare(make_recipe(tmp_path / "base", tasks, output={"kind": "adapter"}, device="cpu"), session)
    assert plan.output_bytes == sum(entry.adapter_bytes(None) for entry in plan.entries) > 0
    # Embedding tables that no adapter touches are no part of it.
    assert {entry.rule for entry in plan.entries if not any(entry.sources)} == {"copy"}


def test_an_adapter_of_a_method_outside_the_span_may_have_full_rank(tmp_path: Path, session: Session) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / name, "llama", seed) for seed, name in enumerate("ab", 1)]
    for method in ("average", "ties", "slerp"):
        recipe = make_recipe(tmp_path / "base", tasks, method, output={"kind": "adapter"}, device="cpu")
        report = merge_recipe(recipe, tmp_path / method, session)
        assert report.output_bytes <= prepare(recipe, session).output_bytes, method


def test_the_device_is_the_recipe_s_then_the_session_s(recipe_for: Callable[..., Any], session: Session) -> None:
    recipe = dataclasses.replace(recipe_for("ab"), device="auto")
    on_cpu = dataclasses.replace(session, device="cpu")
    assert prepare(recipe, on_cpu).device == torch.device("cpu")
    if not torch.cuda.is_available():
        elsewhere = dataclasses.replace(session, device="cuda")
        assert prepare(recipe_for("ab"), elsewhere).device == torch.device("cpu")
        with pytest.raises(InputError, match="'cuda' is not available here"):
            prepare(recipe, elsewhere)


def test_every_checkpoint_that_cannot_be_opened_is_named_at_once(tiny_models: Path, session: Session) -> None:
    missing = [tiny_models / "x", tiny_models / "a", tiny_models / "y"]
    with pytest.raises(CompatibilityError) as caught:
        prepare(make_recipe(tiny_models / "base", missing), session)
    assert len(caught.value.problems) == 2 and "x" in caught.value.problems[0] and "y" in caught.value.problems[1]


def test_inputs_that_are_open_already_are_not_opened_again(
    recipe_for: Callable[..., Any], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for()
    found = open_inputs(recipe, session)
    for module in (planner, pipeline):
        monkeypatch.setattr(module, "open_inputs", lambda *_: pytest.fail("opened again"))
    monkeypatch.setattr(pipeline, "refuse_unchanged", lambda *_: pytest.fail("compared again"))
    assert prepare(recipe, session, found).preflight is found


@pytest.mark.parametrize("command", ["check", "merge"])
def test_a_command_plans_and_prices_once(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from sftm_app import cli

    priced: list[int] = []
    real = planner.estimate
    monkeypatch.setattr(planner, "estimate", lambda *given: (priced.append(1), real(*given))[1])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {tiny_models / 'base'}\ntasks: [{tiny_models / 'a'}]\noutput: {{path: out}}\n")
    with pytest.raises(SystemExit) as caught:
        cli.main([command, str(recipe), *(["--quiet"] if command == "merge" else [])])
    assert caught.value.code == 0 and priced == [1]
