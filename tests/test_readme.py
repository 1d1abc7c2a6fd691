"""The README is true: its example runs, its commands exist, its tables name every method and option."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path

import pytest

from bench.methods_table import methods_table, with_table
from sftm_app.cli import build_parser
from sftm_app.methods import METHODS
from sftm_app.methods.params import CommonParams, controls
from sftm_app.planning.recipe import recipe_from_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert tried >= 4 and failed == 0


def test_the_table_of_methods_is_the_code_s() -> None:
    table = methods_table()
    assert f"\n\n{table}\n\n" in README, "Run `python -m bench.methods_table --write`."
    assert all(f"`{field}`" in README for field in controls(CommonParams))


def test_a_changed_method_changes_its_row_only() -> None:
    methods = {**METHODS, "ties": dataclasses.replace(METHODS["ties"], title="Trimmed")}
    rows, others = methods_table().splitlines(), methods_table(methods).splitlines()
    assert [(a, b) for a, b in zip(rows, others, strict=True) if a != b] == [
        (row, row.replace("`ties`: TIES", "`ties`: Trimmed")) for row in rows if row.startswith("| `ties`")
    ]
    old = "\n".join([*rows[:2], "| `gone` | row |"])
    assert with_table(f"before\n\n{old}\n\nafter\n") == f"before\n\n{methods_table()}\n\nafter\n"
    with pytest.raises(ValueError, match="has no line"):
        with_table("no table")


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
