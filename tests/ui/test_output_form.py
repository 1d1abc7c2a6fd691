"""The controls of what is written, and the recipe that they make."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from sftm_app.api import extraction_costs
from sftm_app.errors import RecipeError
from sftm_app.planning.recipe import Output, make_recipe
from sftm_app.session import Session
from sftm_app.ui.forms.output_form import SAME_AS_INPUT, OutputForm
from sftm_app.ui.merging.recipe_view import rank_costs_html
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

UNTOUCHED = ("model", "full", "all", SAME_AS_INPUT, "5GB")


@pytest.fixture(scope="module")
def form() -> OutputForm:
    with gr.Blocks():
        return OutputForm()


def controls(form: OutputForm) -> tuple[Any, ...]:
    return form.kind, form.rank, form.energy, form.dtype, form.shard


def output_of(form: OutputForm, *values: Any) -> Output:
    read = form.read(dict(zip(controls(form), values, strict=True)))
    return make_recipe("base", ["task"], output=read).output


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (UNTOUCHED, Output()),
        (("model", "16", "90%", "float16", "1MB"), Output(dtype="float16", max_shard_size="1MB")),
        (("adapter", "full", "all", SAME_AS_INPUT, "5GB"), Output(kind="adapter")),
        (("adapter", "", "", SAME_AS_INPUT, "5GB"), Output(kind="adapter")),
        (("adapter", "16", "all", SAME_AS_INPUT, "5GB"), Output(kind="adapter", rank=16)),
        (("adapter", "25%", "90%", SAME_AS_INPUT, "5GB"), Output(kind="adapter", rank=0.25, energy=0.9)),
        (("adapter", "full", "0.5", "float32", "5GB"), Output(kind="adapter", energy=0.5, dtype="float32")),
    ],
)
def test_the_controls_make_an_output_and_show_it_again(
    form: OutputForm, values: tuple[Any, ...], expected: Output
) -> None:
    assert output_of(form, *values) == expected
    shown = form.write(expected)
    assert output_of(form, *(shown[control] for control in controls(form))) == expected


@pytest.mark.parametrize(
    ("rank", "energy", "said"),
    [("full", "most", "'most' is not a share"), ("-3", "all", "rank"), ("full", "0", "share")],
)
def test_what_is_not_understood_is_said(form: OutputForm, rank: str, energy: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        output_of(form, "adapter", rank, energy, SAME_AS_INPUT, "5GB")


def test_the_controls_begin_with_a_full_model(form: OutputForm) -> None:
    assert set(controls(form)) == form.inputs
    assert tuple(component.value for component in controls(form)) == UNTOUCHED


def test_what_each_rank_would_keep(studio: Studio, workspace: Workspace, session: Session) -> None:
    recipe = make_recipe(workspace.base, [{"path": workspace.tasks[0].path, "name": "a"}], device="cpu")
    alone = Workspace(workspace.base, workspace.tasks[:1])
    shown = rank_costs_html(studio, alone, recipe)
    for cost in extraction_costs(workspace.base, workspace.tasks[0].path, "cpu", session=session):
        assert f"{cost.energy:.1%}" in shown
        assert cost.worst_layer in shown or cost.worst_energy == 1
    assert "outside the layers that an adapter can hold" in shown
