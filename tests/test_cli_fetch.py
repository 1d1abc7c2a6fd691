"""sftm fetch: looks, compares, downloads, prints folders and writes a recipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import FakeHub, read_folder
from test_cli import Run, sftm  # noqa: F401

from sftm_app.hub.presets import PRESETS, Preset
from sftm_app.planning.recipe import load_recipe
from sftm_app.weights.hub_names import HubRef, hub_cache, hub_name


def test_folders_on_stdout_and_a_recipe_that_merges(hub: FakeHub, sftm: Run, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "set.yaml"
    code, out, err = sftm("fetch", "--base", "org/base", "org/a", "org/b@main", "--recipe", file)
    assert code == 0, err
    folders = out.split()
    assert [hub_name(folder).partition("@")[0] for folder in folders] == ["org/base", "org/a", "org/b"]
    assert "ViTForImageClassification" in err and "to download" in err and "100%" in err
    recipe = load_recipe(file)
    assert [recipe.base, *(task.path for task in recipe.tasks)] == folders
    assert [task.name for task in recipe.tasks] == ["a", "b"]
    assert sftm("check", file)[0] == 0
    assert "exists already" in sftm("fetch", "--base", "org/base", "org/a", "--recipe", file)[2]


def test_a_preset_is_one_word(hub: FakeHub, sftm: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made = Preset("tiny", "Tiny", "", HubRef("org/base"), (("first", HubRef("org/a")), ("second", HubRef("org/c"))))
    monkeypatch.setitem(PRESETS, "tiny", made)
    code, out, err = sftm("fetch", "--preset", "tiny", "--look")
    assert (code, out) == (0, "") and "org/c at " in err and "Download: " in err
    assert not hub_cache().exists()
    code, out, err = sftm("fetch", "--preset", "tiny", "--quiet")
    assert (code, len(out.split()), err) == (0, 3, "")


def test_what_does_not_fit_is_said_before_the_download(hub: FakeHub, sftm: Run, models: Path) -> None:  # noqa: F811
    (models / "a" / "config.json").write_text('{"model_type": "bert"}')
    hub.add("org/odd", read_folder(models / "a"))
    code, out, err = sftm("fetch", "--base", "org/base", "org/odd")
    assert (code, out) == (2, "") and "odd: is a 'bert' model, the base is a 'vit' model" in err
    assert not hub_cache().exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a model"),
        (["--preset", "nothing"], "Choose one of clip-vit-b32-8"),
        (["org/a", "--recipe", "x.yaml"], "Add --base MODEL"),
        (["not a model"], "is neither a folder on this machine nor the name of a model"),
        (["org/a", "org/none"], "org/none: there is no such model"),
    ],
)
def test_refusals(hub: FakeHub, sftm: Run, arguments: list[str], said: str) -> None:  # noqa: F811
    code, out, err = sftm("fetch", *arguments)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_ends_it_and_leaves_no_half_file(hub: FakeHub) -> None:
    hub.stall.add("model.safetensors")
    # The header's own bytes are few: only the download itself asks for the whole file, and stalls.
    environment = {**os.environ, "HF_HUB_CACHE": str(hub_cache())}
    process = subprocess.Popen([sys.executable, "-m", "sftm_app", "fetch", "org/a", "--quiet"], env=environment)
    deadline = time.monotonic() + 20
    while not list(hub_cache().rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(hub_cache().rglob("*.incomplete"))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130 and time.monotonic() - began < 2.5
    assert not list(hub_cache().rglob("*.incomplete"))
