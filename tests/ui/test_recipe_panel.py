"""A recipe from a file: where its paths start, and models of the hub that are not on this machine."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
from fake_hub import FakeHub

from sftm_app.errors import InputError
from sftm_app.ui.app import TABS, Page
from sftm_app.ui.merging.recipe_panel import RecipePanel
from sftm_app.ui.models.hub_panel import OWN
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.fixture
def panel(studio: Studio) -> RecipePanel:
    with gr.Blocks():
        return RecipePanel(studio, gr.State(Workspace()))


def test_paths_in_a_recipe_on_this_machine_start_at_its_own_folder(
    studio: Studio, panel: RecipePanel, tmp_path: Path
) -> None:
    root = studio.settings.models_dir
    recipe = root / "recipes" / "mine.yaml"
    recipe.parent.mkdir()
    recipe.write_text("base: ../base\ntasks: [../a, ../b]\nmethod: average")
    for text in (str(recipe), "recipes/mine.yaml"):
        ws: Workspace = panel.use_on_disk({panel.on_disk: text})[panel.workspace]
        assert ws.inputs == tuple(str(root / name) for name in ("base", "a", "b"))
        assert dict(ws.asked)["merge"].startswith("method=average")
    outside = tmp_path / "other.yaml"
    outside.write_text(recipe.read_text())
    for text in (str(outside), "", "/etc/passwd"):
        with pytest.raises(InputError):
            panel.use_on_disk({panel.on_disk: text})
    recipe.write_text("base: ../../packs/../../etc\ntasks: [../a]")
    with pytest.raises(InputError, match="outside"):
        panel.use_on_disk({panel.on_disk: str(recipe)})


def test_the_same_recipe_is_opened_again_after_the_form_was_changed(
    studio: Studio, panel: RecipePanel, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: base\ntasks: [a, b]")
    first, second = (panel.use({panel.upload: str(file)})[panel.workspace] for _ in range(2))
    assert first != second and first.asked == second.asked, "so that the page sees a change"


def test_the_download_of_missing_models_is_offered(hub: FakeHub, studio: Studio, tmp_path: Path) -> None:
    page = Page(studio, TABS)
    panel = page.merge.recipe
    file = tmp_path / "recipe.yaml"
    file.write_text("base: org/base\ntasks: [org/a, b]\nmethod: average")
    with pytest.warns(UserWarning, match="not on this machine: org/base, org/a"):
        shown = panel.use({panel.upload: str(file)})
    assert panel.workspace not in shown, "nothing is loaded"
    offered = page.propose_download(shown)
    fields = page.models.hub
    assert (offered[fields.preset], offered[fields.base], offered[fields.tasks]) == (OWN, "org/base", "org/a\nb")
    assert offered[fields.box]["open"] and offered[page.tabs].selected == "models"
    assert not hub.served, "nobody is contacted before the person presses Look"
    assert page.propose_download({panel.missing: None}) == {}
