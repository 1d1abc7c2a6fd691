"""What the tabs show is kept by workspace, over a restart, whatever lies in the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftm_app.planning.recipe import TaskEntry, make_recipe
from sftm_app.ui import keeping
from sftm_app.ui.keeping import MOST_IN_ADDRESS, MOST_KEPT, Keeper, Parts
from sftm_app.ui.merging.differences import makes_another_model
from sftm_app.ui.merging.form import recipe_from_text, recipe_of, recipe_to_text, settings_of
from sftm_app.ui.workspace import Workspace

ONE = Workspace("/m/base", (TaskEntry("/m/a", "a"), TaskEntry("/m/b", "b")))
TWO = replace(ONE, base="/m/other")


def test_texts_are_kept_by_workspace_and_part(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "views")
    keeper.put(ONE, "merge", "method=ties")
    keeper.put(ONE, "run", "x")
    keeper.put(TWO, "merge", "method=average")
    for one in (keeper, Keeper(tmp_path / "views")):
        assert (one.get(ONE, "merge"), one.get(ONE, "run"), one.get(TWO, "merge")) == (
            "method=ties",
            "x",
            "method=average",
        )
        assert one.get(TWO, "run") == ""
    retrained = replace(ONE, fingerprint="new", roles=(("*", "copy"),), asked=(("merge", "x"),), visit=3)
    assert keeper.get(retrained, "merge") == "method=ties"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"merge": 3}', b"\xff\xfe"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    Keeper(tmp_path).put(ONE, "merge", "x")
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    again = Keeper(tmp_path)
    assert again.get(ONE, "merge") == ""
    again.put(ONE, "merge", "y")
    assert Keeper(tmp_path).get(ONE, "merge") == "y"


def test_the_files_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "WORKSPACES_KEPT", 3)
    keeper = Keeper(tmp_path)
    for i in range(6):
        keeper.put(replace(ONE, base=f"/m/{i}"), "merge", "x")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keeper = Keeper(tmp_path / "file" / "views")
    keeper.put(ONE, "merge", "x")
    assert keeper.get(ONE, "merge") == "x"


def test_a_long_text_is_kept_but_not_in_the_address(tmp_path: Path) -> None:
    part = Parts(Keeper(tmp_path)).add("evaluate")
    assert part.note(ONE, "x" * MOST_IN_ADDRESS)[part.shown]
    assert part.note(ONE, "y" * (MOST_IN_ADDRESS + 1)) == {part.shown: ""}
    assert part.asked(ONE) == ("y" * (MOST_IN_ADDRESS + 1), False)
    part.note(ONE, "z" * (MOST_KEPT + 1))
    assert part.asked(ONE)[0][0] == "y"
    assert part.asked(replace(ONE, asked=(("evaluate", "q"),))) == ("q", True)


RECIPES = [
    {},
    {"params": {"variant": "mapping", "rank": "90% energy", "scaling": 0.8}, "weights": (0.5, 1.0)},
    {"method": "ties", "params": {"density": 0.4}, "weights": (0.5, 3.0)},
    {"params": {"rank": 8}, "output": {"kind": "adapter", "rank": 0.25, "energy": 0.5, "max_shard_size": "1GB"}},
    {"output": {"dtype": "float16", "kind": "adapter", "rank": 16}, "split_fused": True},
    {"device": "auto", "memory": "4GB", "measure": "all"},
]


@pytest.mark.parametrize("given", RECIPES)
def test_a_form_comes_back_whole_from_its_text(given: dict[str, object]) -> None:
    fields = {"device": "cpu", **given}
    weights = fields.pop("weights", (1.0, 1.0))
    tasks = [{"path": t.path, "name": t.name, "weight": w} for t, w in zip(ONE.tasks, weights, strict=True)]  # type: ignore[call-overload]
    recipe = make_recipe(ONE.base, tasks, **fields)  # type: ignore[arg-type]
    problems: list[str] = []
    assert recipe_from_text(recipe_to_text(recipe, "cpu"), ONE, "cpu", problems) == recipe and not problems


@pytest.mark.parametrize(
    "text", ["method=none", "method=ties&density=x", "method=average&memory=lots", "method=average&out-kind=x"]
)
def test_a_form_that_an_address_garbles_is_left_out_and_said(text: str) -> None:
    problems: list[str] = []
    assert recipe_from_text(text, ONE, "cpu", problems) is None and "were ignored" in problems[0]
    assert recipe_from_text("", ONE, "cpu", problems) is None and len(problems) == 1


def test_only_what_makes_another_model_counts_as_a_difference() -> None:
    recipe = make_recipe(ONE.base, ["/m/a", "/m/b"])
    same = replace(recipe, device="cpu", memory="4GB", measure="none")
    assert not makes_another_model(
        recipe, replace(same, output=replace(recipe.output, path="/x", max_shard_size="1GB"))
    )
    for changes in (
        {"method": "average", "params": {}},
        {"params": {"scaling": 0.5}},
        {"split_fused": True},
        {"output": {"dtype": "float16"}},
        {"tasks": [{"path": "/m/a", "weight": 0.5}, "/m/b"]},
    ):
        other = make_recipe(ONE.base, **({"tasks": ["/m/a", "/m/b"]} | changes))  # type: ignore[arg-type]
        assert makes_another_model(recipe, other), changes
    assert recipe_of(ONE, settings_of(recipe)) == recipe
