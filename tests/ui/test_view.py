"""A view as an address, and back."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, urlencode

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftm_app.errors import InputError
from sftm_app.methods.settings import merge_settings
from sftm_app.ui.address import asked_of_tabs, page_to_query, workspace_from_query, workspace_to_query
from sftm_app.ui.forms.rank_slider import amount_update, kind_and_amount, rank_of
from sftm_app.ui.loading import load_own, pack_workspace, remember
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import Pinned, View, read_query, view_from_query, view_to_query
from sftm_app.ui.wording import settings_title
from sftm_app.ui.workspace import Workspace

SETTINGS = merge_settings("sftm", {"variant": "mapping", "rank": "90% energy", "scaling": 0.8}, [1.0, 0.5, 1.0])
VIEW = View(
    measure="readout_error",
    about="b",
    layer="encoder.layer.1.output.dense.weight",
    first="a",
    second="c",
    task="b",
    feature=3,
    settings=SETTINGS,
    pinned=Pinned("encoder.layer.0.output.dense.weight", merge_settings("average", {}, [1.0, 1.0, 1.0])),
)


def again(view: View, n_tasks: int = 3) -> View:
    asked = view_from_query(read_query(urlencode(view_to_query(view))), n_tasks)
    assert asked.problems == ()
    return asked.view


def test_a_view_comes_back_whole_from_its_address() -> None:
    assert again(VIEW) == VIEW
    assert again(View()) == View()


@pytest.mark.parametrize("rank", [None, 5, 0.25, "90% energy", "99.5% energy"])
def test_every_kind_of_rank_comes_back(rank: int | float | str | None) -> None:
    settings = merge_settings("sftm", {"rank": rank}, [1.0])
    assert again(View(layer="x", settings=settings), 1).settings == settings


@pytest.mark.parametrize("rank", [None, 1, 5, 64, 5000, 0.25, 0.005, 0.995, "90% energy", "5% energy", "99.95% energy"])
def test_a_rank_comes_back_from_its_slider(rank: int | float | str | None) -> None:
    kind, amount = kind_and_amount(rank)
    assert rank_of(kind, amount) == rank
    update = amount_update(kind, amount, n_features=128)
    slider = gr.Slider(update["minimum"], update["maximum"], value=update["value"], step=update["step"])
    assert slider.preprocess(amount) == amount, "what an address may hold must not stop every event of the page"


def test_what_is_odd_in_an_address_is_left_out_and_said() -> None:
    asked = view_from_query({"method": "sftm", "scaling": "nan", "layer": "x", "feature": "-3"}, 2)
    assert (asked.view.settings, asked.view.feature, asked.view.layer) == (None, 0, "x")
    for word in ("settings in the address were ignored", "address's feature"):
        assert any(word in problem for problem in asked.problems)
    assert view_from_query({"method": "nonsense"}, 1).problems
    assert view_from_query({"layer": "x" * 10_000}, 1).view.layer == ""
    other = view_from_query({"method": "average", "weights": "1,2,3"}, 2)
    assert other.view.settings is None and "3 weights for 2 tasks" in other.problems[0]
    assert view_from_query({"layer": "x" * 10_000}, 1).problems
    assert view_from_query({"method": "average", "weights": "1,x"}, 2).problems


@given(
    st.dictionaries(
        st.sampled_from(["layer", "method", "rank", "scaling", "weights", "pin", "feature", "task"]),
        st.text(max_size=60),
    )
)
def test_no_address_breaks_the_page(query: dict[str, str]) -> None:
    view = view_from_query(query, 2).view
    assert view.feature >= 0 and (view.settings is None or len(view.settings.weights) == 2)


def test_settings_in_words() -> None:
    assert settings_title(merge_settings("sftm", {}, [1.0, 1.0])) == "SFTM"
    assert settings_title(SETTINGS) == "SFTM, mapping, rank 90% energy, scaling 0.8, weights set"


def test_the_workspace_in_an_address(studio: Studio) -> None:
    demo = remember(studio, pack_workspace(studio.packs[0]))
    assert workspace_to_query(studio, demo) == [("demo", "tiny")]
    own = load_own(studio, "base", ["a", "b"])
    query = workspace_to_query(studio, own)
    assert query == [("base", "base"), ("with", "a:a"), ("with", "b:b")], "below the models folder, no absolute path"
    for ws in (demo, own):
        address = page_to_query(studio, ws, "merge")
        assert workspace_from_query(studio, parse_qs(address)) == ws and parse_qs(address)["tab"] == ["merge"]
    assert page_to_query(studio, Workspace(), "merge") == ""
    weighed = replace(own, tasks=(replace(own.tasks[0], weight=0.5), own.tasks[1]))
    opened = workspace_from_query(studio, parse_qs(page_to_query(studio, weighed, "merge")))
    assert opened is not None and [task.weight for task in opened.tasks] == [0.5, 1.0]
    assert workspace_from_query(studio, {}) is None


def test_what_an_address_asks_of_the_tabs() -> None:
    merge = urlencode([("method", "ties"), ("density", "0.4")])
    query = urlencode([("demo", "tiny"), ("tab", "merge"), *view_to_query(VIEW), ("merge", merge), ("run", "x")])
    asked = dict(asked_of_tabs(parse_qs(query)))
    assert asked.pop("view") == urlencode(view_to_query(VIEW))
    assert asked == {"merge": merge, "run": "x"}
    assert asked_of_tabs({}) == ()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("demo=none", "names the demo"),
        ("base=/etc&with=a:a", "outside the models folder"),
        ("base=base&with=a:../../../etc", "outside the models folder"),
        ("base=base&with=..%2Fx:a", "cannot be a file name"),
        ("base=base&with=a:a&with=a:b", "given to 2 tasks"),
        ("base=base&with=a:a&role=nonsense:*", "is not known"),
        ("base=base&" + "&".join(["with=a:a"] * 129), "at most 128"),
        ("base=base&with=a:a&own-weights=1,2", "are not 1 numbers"),
        ("base=base&with=a:a&own-weights=x", "are not 1 numbers"),
    ],
)
def test_an_address_cannot_name_what_a_person_may_not_pick(studio: Studio, query: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        workspace_from_query(studio, parse_qs(query))
