"""The panel of the Models tab for hub models; its handlers as plain functions, its wiring through the app."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fake_hub import FakeHub, read_folder
from tiny_checkpoints import change_config

from sftm_app.errors import InputError
from sftm_app.hub.fetching import Fetching, FetchStatus, choose, fetch
from sftm_app.hub.hub_look import look
from sftm_app.hub.hub_process import HubProcess
from sftm_app.hub.presets import PRESETS, Preset
from sftm_app.ui.loading import load_own
from sftm_app.ui.models import hub_panel
from sftm_app.ui.models.hub_panel import HubPanel
from sftm_app.ui.models.tab import preflight_html
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, restore
from sftm_app.weights.hub_names import HubRef, hub_cache


@pytest.fixture
def panel(studio: Studio) -> HubPanel:
    with gr.Blocks() as page:
        return HubPanel(studio, gr.State(Workspace()), page)


def named(panel: HubPanel, preset: str, base: str = "", tasks: str = "") -> dict[Any, Any]:
    return {panel.preset: preset, panel.base: base, panel.tasks: tasks}


def watch_until(panel: HubPanel, word: str, seconds: float = 20) -> dict[Any, Any]:
    deadline = time.monotonic() + seconds
    while True:
        seen = panel.watch()
        if word in str(seen[panel.shown]):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = (("first", HubRef("org/a")), ("second", HubRef("org/b")))
    monkeypatch.setitem(PRESETS, "tiny", Preset("tiny", "Tiny", "For tests.", HubRef("org/base"), tasks))


def test_a_preset_is_two_clicks(hub: FakeHub, studio: Studio, panel: HubPanel, tiny_preset: None) -> None:
    assert hub.served == []
    shown = panel.begin_look(named(panel, "tiny"))
    assert "Reading headers" in shown[panel.shown] and hub.url in shown[panel.shown]
    buttons = [shown[button]["interactive"] for button in (panel.look, panel.fetch, panel.cancel)]
    assert buttons == [False, False, True]
    assert shown[panel.timer].active
    seen = watch_until(panel, "The 2 tasks fit the base")
    assert "The download is" in seen[panel.shown] and "org/a" in seen[panel.shown]
    assert seen[panel.fetch]["interactive"] is True
    panel.begin_fetch(named(panel, "tiny"))
    loaded = watch_until(panel, "Downloaded")
    while panel.workspace not in loaded:  # the page that saw the end first gets it
        loaded = panel.watch()
    workspace = loaded[panel.workspace]
    assert workspace.task_names == ("first", "second")
    assert restore(studio.settings.output_dir) == workspace
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    shown = preflight_html(studio, workspace)
    assert "2 tasks fit the base" in shown and "org/a@" in shown


def test_mismatches_and_refusals_are_shown_and_nothing_can_be_downloaded(
    hub: FakeHub, studio: Studio, panel: HubPanel
) -> None:
    odd = studio.settings.models_dir / "c"
    change_config(odd, model_type="bert", architectures=["BertModel"])
    hub.add("org/odd", read_folder(odd))
    panel.begin_look(named(panel, "", "hub:org/base", "org/a\norg/odd\n"))
    seen = watch_until(panel, "cannot be merged, so nothing is downloaded")
    assert "is a &#39;bert&#39; model" in seen[panel.shown] and seen[panel.fetch]["interactive"] is False
    panel.begin_look(named(panel, "", "org/base", "org/none"))
    seen = watch_until(panel, "The models on the hub cannot be used")
    assert "org/none: there is no such model" in seen[panel.shown]
    assert hub.bytes_of(".safetensors") < 3 * 8000 and not hub_cache().exists()


def test_a_changed_choice_is_not_downloaded(hub: FakeHub, panel: HubPanel) -> None:
    with pytest.raises(InputError, match="Press Look again"):
        panel.begin_fetch(named(panel, "", "org/base", "org/a"))
    panel.begin_look(named(panel, "", "org/base", "org/a"))
    watch_until(panel, "The task fits")
    with pytest.raises(InputError, match="Press Look again"):
        panel.begin_fetch(named(panel, "", "org/base", "org/b"))
    assert not hub_cache().exists()


def test_cancel(hub: FakeHub, panel: HubPanel, tiny_preset: None) -> None:
    panel.begin_look(named(panel, "tiny"))
    watch_until(panel, "fit the base")
    hub.stall.add("model.safetensors")
    panel.begin_fetch(named(panel, "tiny"))
    watch_until(panel, "Downloading")
    began = time.monotonic()
    panel.stop()
    seen = watch_until(panel, "Cancelled", 2)
    assert time.monotonic() - began < 2
    assert seen[panel.fetch]["interactive"] is True, "what was looked at can be downloaded again"


def test_own_choice_needs_base_and_tasks_and_prefers_folders(studio: Studio) -> None:
    with pytest.raises(InputError, match="Enter a base and at least one task"):
        hub_panel.read_selection(studio, "", "org/base", " \n")
    shutil.copytree(studio.settings.models_dir / "a", studio.settings.models_dir / "org" / "a")
    chosen = hub_panel.read_selection(studio, "", "base", "org/a\nhub:org/b@main")
    assert chosen.base == studio.settings.models_dir / "base"
    assert chosen.tasks == (("a", studio.settings.models_dir / "org" / "a"), ("b", HubRef("org/b", "main")))
    assert "means the folder" in chosen.notes[0]
    with pytest.raises(InputError, match="lies outside the models folder"):
        hub_panel.read_selection(studio, "", "/etc", "org/a")


def test_texts_of_others_are_shown_letter_by_letter() -> None:
    shown = hub_panel.status_html(FetchStatus("failed", "<script>\nb"))
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert hub_panel.status_html(FetchStatus()) == ""
    assert not Fetching().status.active


def test_fetched_snapshots_may_be_picked_by_path_and_other_links_not(
    hub: FakeHub, studio: Studio, tmp_path: Path
) -> None:
    chosen = choose("org/base", ["org/a"], None, lambda text: None)
    folders = fetch(look(chosen, HubProcess()), HubProcess()).folders
    snapshot = folders[HubRef("org/a")].resolve()
    assert allowed(studio.settings, str(snapshot)) == snapshot
    for other in (snapshot.parent, snapshot.parents[1] / "blobs", snapshot / "config.json"):
        with pytest.raises(InputError, match="outside"):
            allowed(studio.settings, str(other))
    loaded = load_own(studio, str(folders[HubRef("org/base")]), [str(snapshot)])
    assert loaded.task_names == ("a",)

    linked = studio.settings.models_dir / "linked"
    linked.mkdir()
    for file in snapshot.iterdir():
        (linked / file.name).symlink_to(file)
    assert allowed(studio.settings, "linked") == linked, "links into the hub's cache are allowed"
    outside = Path(shutil.copytree(studio.settings.models_dir / "b", tmp_path / "elsewhere"))
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(InputError, match=r"linked/model.safetensors: is a link to .* outside the models folder"):
        allowed(studio.settings, "linked")
