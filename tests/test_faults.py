"""docs/faults.md names at least one test for every promise, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
LIST = TESTS.parent / "docs" / "faults.md"
NUMBERS = {"A": 22, "B": 8, "C": 9, "D": 6}


def promises() -> dict[str, list[str]]:
    """Number of a promise -> the tests that hold it."""
    rows = re.findall(r"^\| ([A-D]\d+) \| (.+?) \| (.+) \|$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(promise.endswith(".") for _, promise, _ in rows)
    return {number: re.findall(r"`([\w/]+\.py::\w+)`", tests) for number, _, tests in rows}


def test_the_list_is_complete() -> None:
    assert list(promises()) == [f"{part}{n}" for part, most in NUMBERS.items() for n in range(1, most + 1)]


def test_every_promise_is_held_by_a_test_that_exists() -> None:
    known: dict[str, set[str]] = {}
    missing = []
    for number, tests in promises().items():
        assert tests, f"{number} has no test"
        for test in tests:
            file, name = test.split("::")
            if file not in known:
                tree = (
                    ast.parse((TESTS / file).read_text(encoding="utf-8")) if (TESTS / file).is_file() else ast.parse("")
                )
                known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            if name not in known[file]:
                missing.append(f"{number}: {test}")
    assert not missing, "\n".join(missing)
