"""The README is true: its example runs, its commands exist, its tables name every method and option."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from sftm_app.cli import build_parser
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.planning.recipe import recipe_from_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert tried >= 4 and failed == 0


def test_every_method_and_parameter_is_named() -> None:
    for name, method in METHODS.items():
        assert f"`{name}`" in README and method.reference.rpartition("arXiv ")[2].split(", SIGGRAPH")[0] in README
        for field in controls(method.params):
            assert f"`{field}`" in README


def test_the_recipe_is_read() -> None:
    recipe = re.search(r"```yaml\n(base:.*?)```", README, re.DOTALL)
    assert recipe is not None
    assert recipe_from_yaml(recipe[1]).method in METHODS


def test_commands_parse() -> None:
    commands = re.findall(r"^python launch.py ((?:merge|check|inspect|extract|fetch|ui) .+)$", README, re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        build_parser().parse_args(command.split())


def test_pictures_and_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
