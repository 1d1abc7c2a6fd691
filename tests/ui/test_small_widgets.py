"""Sliders, links and the address bar: what they send, and what they believe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sftm_app.ui.widgets import slider_rows, slider_values, view_link


def test_sliders_give_back_their_values() -> None:
    rows = slider_rows(["a", "<b>"], ["#111111", "#222222"], [1.0, 0.5])
    assert slider_values(rows, 2) == (1.0, 0.5)


@pytest.mark.parametrize(
    "value",
    [
        None, 3, "", "{}", "[", "[1, 2]", '[["a", "#111", "x"], ["b", "#222", 1]]',
        '[["a", "#111", NaN], ["b", "#222", 1]]', '[["a", "#111", true], ["b", "#222", 1]]', '[["a", "#111", 1]]',
        "[" * 5000, json.dumps([["a" * 70000, "", 1], ["", "", 1]]),
    ],
)  # fmt: skip
def test_what_is_no_sliders_value_is_none(value: Any) -> None:
    assert slider_values(value, 2) is None


def test_links_show_untrusted_names_as_text() -> None:
    link = view_link("<img src=x>", 'a"b', ("feature", '"><script>', 3))
    assert "<img" not in link and "<script" not in link and 'data-sf-show="a&#34;b"' in link
