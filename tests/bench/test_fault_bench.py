"""A small part of `python -m bench.faults`: no promise breaks."""

from __future__ import annotations

import os

import pytest

from bench.faults.__main__ import PARTS
from bench.faults.figures import Figure, show

# Runs in worker processes, and routes, have tests of their own.
QUICK = ["files", "headers", "kills", "matrices", "chaos", "soak"]


@pytest.mark.apart
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="copies processes and makes pipes")
@pytest.mark.parametrize("name", QUICK)
def test_no_promise_breaks(name: str) -> None:
    found = PARTS[name](True)
    assert found.count > 5
    assert not found.wrong, "\n".join(found.wrong[:20])


def test_the_table_says_what_broke(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        ("a", lambda quick: Figure("locks", 3, ("lock 2: was accepted",), "x")),
        ("b", lambda quick: Figure("b", 1, ())),
    ]
    assert show(parts, True) == 1
    printed = capsys.readouterr().out
    assert (
        "| locks | 3 | BROKEN 1 times | x |" in printed and "lock 2: was accepted" in printed and "| holds |" in printed
    )
