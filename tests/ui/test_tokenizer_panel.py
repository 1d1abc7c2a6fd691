"""Choosing a tokenizer on the Models tab, where those of base and tasks differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from tiny_vocabularies import save_model, save_tokenizer, save_tuned

from sftm_app.errors import InputError
from sftm_app.methods.settings import merge_settings
from sftm_app.ui.address import workspace_from_query, workspace_to_query
from sftm_app.ui.loading import load_own
from sftm_app.ui.merging.form import recipe_of
from sftm_app.ui.merging.recipe_view import plan_html
from sftm_app.ui.models.tab import preflight_html
from sftm_app.ui.models.tokenizer_panel import TokenizerPanel, is_choosable
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, restore


@pytest.fixture
def split(studio: Studio) -> Workspace:
    """A base and two tasks that give one row different meanings, loaded."""
    root = studio.settings.models_dir / "text"
    save_model(root / "base")
    for seed, (name, token) in enumerate({"a": "<tool>", "b": "<think>"}.items(), start=1):
        save_tokenizer(save_tuned(root / name, root / "base", seed), added=(token,))
    return load_own(studio, "text/base", ["text/a", "text/b"])


def test_the_choice_is_asked_for_and_makes_the_models_usable(studio: Studio, split: Workspace) -> None:
    assert not studio.usable(split) and is_choosable(studio, split)
    asked = preflight_html(studio, split)
    assert "Choose whose tokenizer the merged model has" in asked and "&lt;think&gt;" in asked
    with gr.Blocks():
        panel = TokenizerPanel(studio, gr.State(split))
    shown = panel.show({panel.workspace: split})[panel.choice]
    assert shown["visible"] and shown["value"] == "automatic"
    assert [value for _, value in shown["choices"]] == ["automatic", "base", "union", "task a", "task b"]
    made = panel.set({panel.workspace: split, panel.choice: "union"})[panel.workspace]
    assert studio.usable(made) and restore(studio.settings.output_dir) == made
    assert "2 tasks fit the base" in preflight_html(studio, made)
    recipe = recipe_of(made, merge_settings("average", {}, [1.0, 1.0]))
    assert recipe.tokenizer == "union"
    assert "a, 12 tensors: merged " in plan_html(studio.plan(made, recipe))
    back = panel.set({panel.workspace: made, panel.choice: "automatic"})[panel.workspace]
    assert back.tokenizer is None and not studio.usable(back)


def test_the_choice_is_in_the_address(studio: Studio, split: Workspace) -> None:
    made = replace(split, tokenizer="task b")
    query = workspace_to_query(studio, made)
    assert ("tokenizer", "task b") in query
    lists: dict[str, list[str]] = {}
    for name, value in query:
        lists.setdefault(name, []).append(value)
    found = workspace_from_query(studio, lists)
    assert found is not None and found.tokenizer == "task b"
    with pytest.raises(InputError, match="tokenizer: 'task x' is not one of base, union, task a, task b"):
        workspace_from_query(studio, lists | {"tokenizer": ["task x"]})


def test_nothing_is_asked_where_the_models_have_no_tokenizers(studio: Studio, tmp_path: Path) -> None:
    ws = load_own(studio, "base", ["a", "b"])
    assert not is_choosable(studio, ws)
    with gr.Blocks():
        panel = TokenizerPanel(studio, gr.State(ws))
    assert not panel.show({panel.workspace: ws})[panel.choice]["visible"]
