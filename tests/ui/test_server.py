"""What the browser may reach and how errors reach the person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sftm_app.errors import InputError, OutputError, RecipeError
from sftm_app.ui.app import TABS, Page
from sftm_app.ui.handlers import handle
from sftm_app.ui.models.checkpoints import find_checkpoints
from sftm_app.ui.settings import Settings, allowed, make_settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace, restore, store


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "base/../../outside", "", "   ", "a\0b", "~root/x"])
def test_paths_outside_the_roots_are_refused(studio: Studio, path: str) -> None:
    with pytest.raises(InputError):
        allowed(studio.settings, path)


def test_paths_inside_the_roots_are_taken_by_name_or_whole(studio: Studio) -> None:
    base = studio.settings.models_dir / "base"
    assert allowed(studio.settings, "base") == allowed(studio.settings, f" {base} ") == base


def test_hidden_folders_and_links_that_lead_out_are_refused(studio: Studio, tmp_path: Path) -> None:
    (studio.settings.models_dir / ".cache").mkdir()
    with pytest.raises(InputError, match="hidden"):
        allowed(studio.settings, ".cache/model")
    (studio.settings.models_dir / "link").symlink_to("/etc")
    with pytest.raises(InputError, match="outside"):
        allowed(studio.settings, "link")


def test_settings_refuse_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        make_settings([tmp_path / "none"], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        make_settings([tmp_path], tmp_path / "file" / "out")
    monkeypatch.chdir(tmp_path)
    made = make_settings([], None)
    assert (made.models_dir, made.output_dir) == (Path.home().resolve(), tmp_path / "sftm-output")


def test_errors_become_messages_that_show_names_as_text() -> None:
    def refuses(text: str) -> None:
        raise RecipeError(text)

    with pytest.raises(gr.Error) as caught:
        handle(refuses)("<img src=x onerror=alert(1)>")
    assert "&lt;img" in caught.value.message and "<img" not in caught.value.message

    with pytest.raises(gr.Error) as caught:
        handle(refuses)("Set `rank` lower.\nOr `<b>`.")
    assert caught.value.message == (
        'Set <code class="sf-code">rank</code> lower.<br>Or <code class="sf-code">&lt;b&gt;</code>.'
    )
    assert 0 < caught.value.duration <= 10

    def streams(text: str) -> Any:
        yield 1
        raise RecipeError(text)

    steps = handle(streams)("no")
    assert next(steps) == 1
    with pytest.raises(gr.Error, match="no"):
        next(steps)


def test_a_handler_without_updates_changes_nothing() -> None:
    """Gradio would take an empty dict for a value, and empty the outputs of a generator that yields nothing."""

    def nothing() -> Any:
        yield from ()

    assert handle(lambda: {})() == gr.skip()
    assert list(handle(nothing)()) == [gr.skip()]


def test_unexpected_errors_tell_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    def breaks() -> None:
        raise KeyError("/secret/path")

    with pytest.raises(gr.Error) as caught:
        handle(breaks)()
    assert "secret" not in caught.value.message
    assert "/secret/path" in caplog.text


def test_workspace_survives_a_restart(studio: Studio, workspace: Workspace) -> None:
    output = studio.settings.output_dir
    assert restore(output) == Workspace()
    store(output, workspace)
    assert restore(output) == workspace
    (output / "workspace.json").write_text('{"base": 1')
    assert restore(output) == Workspace()


def test_checkpoints_are_found_below_the_models_folder(studio: Studio) -> None:
    root = studio.settings.models_dir
    (root / ".hidden" / "x").mkdir(parents=True)
    (root / ".hidden" / "x" / "config.json").write_text("{}")
    assert [path.name for path in find_checkpoints(root)] == ["a", "b", "base", "c"]


def test_every_control_has_a_label_and_a_help_line(studio: Studio) -> None:
    demo = Page(studio, TABS).blocks
    controls = (gr.Dropdown, gr.Radio, gr.Slider, gr.Textbox, gr.CheckboxGroup)
    found = [block for block in demo.blocks.values() if isinstance(block, controls)]
    assert len(found) > 10
    assert [block.elem_id or block.label for block in found if not (block.label and block.info)] == []


def test_settings_are_plain_values() -> None:
    settings = Settings(Path("/m"), Path("/o"), Path("/p"))
    assert settings.roots == (Path("/m"), Path("/o"), Path("/p"))
    assert settings.runs_dir == Path("/o/runs")
