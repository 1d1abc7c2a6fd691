"""Which checkpoints the Models tab offers, as a base and as tasks of one; and where it searches for them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from tab_values import values_of
from tiny_adapters import build, save_adapter

from sftm_app.errors import InputError
from sftm_app.ui.models.checkpoints import checkpoint_choices, title_of
from sftm_app.ui.models.folders import FOLDERS_NAME, added_folders, set_folders
from sftm_app.ui.models.picker import Picker
from sftm_app.ui.settings import Settings, allowed, make_settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.fixture
def picker(studio: Studio) -> Picker:
    """Over the tiny ViTs, a Llama, and two adapters of it."""
    root = studio.settings.models_dir
    size = {"hidden_size": 32, "intermediate_size": 40}
    build("llama", **size).save_pretrained(root / "llama")
    for name in ("one", "two"):
        save_adapter(root / name, "llama", 1, size)
    with gr.Blocks() as page:
        return Picker(studio, gr.State(Workspace()), page)


def names(update: dict[str, object]) -> set[str]:
    return {Path(path).name for _, path in update["choices"]}  # type: ignore[attr-defined]


def test_no_adapter_is_offered_as_a_base_and_tasks_fit_the_base(studio: Studio, picker: Picker) -> None:
    root = studio.settings.models_dir
    values = values_of(picker, picker.pickers | {picker.workspace})
    shown = picker.open(values | {picker.workspace: Workspace()})
    assert names(shown[picker.base]) == {"base", "a", "b", "c", "llama"}
    assert names(shown[picker.tasks]) == {"base", "a", "b", "c", "llama", "one", "two"}, "nothing is known yet"
    for base, tasks in (("base", {"a", "b", "c"}), ("llama", {"one", "two"})):
        shown = picker.follow_base(values | {picker.base: str(root / base)})
        assert names(shown[picker.tasks]) == tasks
    # What is picked stays, even where it does not fit: loading it says why.
    shown = picker.follow_base(values | {picker.base: str(root / "llama"), picker.tasks: [str(root / "a")]})
    assert names(shown[picker.tasks]) == {"a", "one", "two"} and "value" not in shown[picker.tasks]
    assert names(picker.follow_base(values | {picker.base: "/etc"})[picker.tasks]) >= {"a", "one"}


def test_a_page_that_opens_late_empties_nothing_that_was_picked_since(picker: Picker) -> None:
    opened = picker.open(values_of(picker, picker.pickers | {picker.workspace}) | {picker.workspace: Workspace()})
    assert all("value" not in opened[one] for one in picker.pickers)


def test_the_list_says_kind_and_size(studio: Studio, picker: Picker) -> None:
    found = {one.path.name: title_of(one, studio.settings) for one in checkpoint_choices(studio.settings)}
    size = (studio.settings.models_dir / "a" / "model.safetensors").stat().st_size
    assert found["a"] == f"a · vit · {size / 1000:.3g} kB"
    assert found["one"].startswith("one · LoRA adapter, r 3 · ")


def test_a_demo_that_was_loaded_is_picked(studio: Studio, workspace: Workspace, picker: Picker) -> None:
    shown = picker.show({picker.workspace: workspace})
    assert shown[picker.base]["value"] == workspace.base
    assert shown[picker.tasks]["value"] == [task.path for task in workspace.tasks]
    for update, paths in ((shown[picker.base], [workspace.base]), (shown[picker.tasks], workspace.inputs[1:])):
        assert {path for _, path in update["choices"]} >= set(paths), "with a name, not as a bare path"


def test_a_second_folder_is_searched(studio: Studio, picker: Picker, tmp_path: Path) -> None:
    deep = studio.settings.models_dir / "1" / "2" / "3" / "4" / "5" / "6"
    deep.parent.mkdir(parents=True)
    shutil.copytree(studio.settings.models_dir / "a", deep)
    values = values_of(picker, {*picker.pickers, picker.folders, picker.workspace})
    assert "6" not in names(picker.look_again(values)[picker.base])
    shown = picker.search_in(values | {picker.folders: [str(deep.parent)]})
    assert "6" in names(shown[picker.base]) and shown[picker.folders]["value"] == [str(deep.parent)]
    assert picker.open(values | {picker.workspace: Workspace()})[picker.folders]["value"] == [str(deep.parent)]
    # One that may not be opened changes nothing.
    (tmp_path / "outside").mkdir()
    for bad in (str(tmp_path / "outside"), str(deep.parent / "none"), "/etc"):
        with pytest.warns(UserWarning, match="outside the models folder|no such folder"):
            shown = picker.search_in(values | {picker.folders: [str(deep.parent), bad]})
        assert shown[picker.folders]["value"] == [str(deep.parent)]
    assert picker.search_in(values | {picker.folders: []})[picker.folders]["value"] == []


@pytest.mark.parametrize("stored", ["{", "[3, null]", '["/etc", "../.."]', '{"a": 1}'])
def test_a_file_of_folders_that_was_changed_opens_nothing(studio: Studio, stored: str) -> None:
    (studio.settings.output_dir / FOLDERS_NAME).write_text(stored)
    assert added_folders(studio.settings) == []


def test_folders_are_checked_again_after_a_start_with_others(studio: Studio, tmp_path: Path) -> None:
    inside = studio.settings.models_dir / "a"
    set_folders(studio.settings, [str(inside)])
    other = tmp_path / "other"
    other.mkdir()
    assert added_folders(replace(studio.settings, models_dir=other)) == []
    with pytest.raises(InputError, match="at most"):
        set_folders(studio.settings, [str(inside)] * 100)
    assert json.loads((studio.settings.output_dir / FOLDERS_NAME).read_text()) == [str(inside)]


def test_several_folders_are_allowed_at_the_start(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    made: Settings = make_settings(folders, tmp_path / "out")
    assert made.models_dirs == tuple(folders)
    assert allowed(made, str(folders[1])) == folders[1]
    assert allowed(made, "x") == folders[0] / "x", "relative paths start at the first"
    with pytest.raises(InputError, match=r"outside the models folders .*one, .*two"):
        allowed(made, "/etc")
