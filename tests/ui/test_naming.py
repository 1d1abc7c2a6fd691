"""Names of merges: their settings, and what tells equal ones apart."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sftm_app.methods import METHODS
from sftm_app.planning.recipe import make_recipe
from sftm_app.ui.naming import distinct_names, recipe_name

A, B, C = ({"path": name} for name in "abc")


def recipe(*tasks: Any, **changes: Any) -> Any:
    return make_recipe("base", tasks or (A, B, C), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "SFTM"),
        ({"params": {"rank": 0.25, "scaling": 0.8}}, "SFTM, rank 25%, scaling 0.8"),
        ({"params": {"variant": "mapping", "rank": "80% energy"}}, "SFTM, mapping, rank 80% energy"),
        ({"method": "task_arithmetic", "params": {"scaling": 1.0}}, "Task arithmetic, scaling 1"),
        ({"split_fused": True, "output": {"dtype": "float16"}}, "SFTM, fused maps split, float16"),
        ({"output": {"kind": "adapter", "rank": 16, "energy": 0.9}}, "SFTM, adapter of rank 16, 90% of the energy"),
        ({"roles": {"*.norm": "embedding"}, "device": "cpu", "memory": "4GB"}, "SFTM, roles set"),
    ],
)
def test_a_name_says_what_differs_from_the_defaults(changes: dict[str, Any], said: str) -> None:
    assert recipe_name(recipe(**changes)) == said


def test_every_method_at_its_defaults_is_called_by_its_title() -> None:
    tasks = (A, B)
    assert [recipe_name(recipe(*tasks, method=name)) for name in METHODS] == [one.title for one in METHODS.values()]


def test_few_weights_are_named_and_many_are_counted() -> None:
    assert recipe_name(recipe({**A, "weight": 0.5}, B, C)) == "SFTM, a weight 0.5"
    assert recipe_name(recipe(*({**one, "weight": 2} for one in (A, B, C)))) == "SFTM, 3 weights"


def test_equal_names_get_what_tells_them_apart() -> None:
    first = recipe(*({**one, "weight": 2} for one in (A, B, C)))
    second = recipe({**A, "weight": 3}, {**B, "weight": 2}, {**C, "weight": 2})
    roles = [recipe(roles={pattern: "norm"}) for pattern in ("*.x", "*.y")]
    names = distinct_names([first, recipe(), second, *roles, recipe(device="cpu")])
    assert names == [
        "SFTM, a weight 2, b weight 2, c weight 2",
        "SFTM",
        "SFTM, a weight 3, b weight 2, c weight 2",
        "SFTM, roles set, *.x as norm",
        "SFTM, roles set, *.y as norm",
        "SFTM, on cpu",
    ]


def test_the_same_recipe_again_is_numbered_and_no_name_holds_a_clock() -> None:
    names = distinct_names([recipe(), recipe(method="average"), recipe(), recipe()])
    assert names == ["SFTM", "Plain average", "SFTM (2)", "SFTM (3)"]
    assert not any(time.strftime("%Y") in name or ":" in name for name in names)


def test_names_of_earlier_merges_stay_as_more_are_made() -> None:
    recipes = [recipe(), recipe(params={"scaling": 0.5}), recipe(), recipe(params={"scaling": 0.5})]
    for n in range(1, len(recipes)):
        assert distinct_names(recipes)[:n] == distinct_names(recipes[:n])
