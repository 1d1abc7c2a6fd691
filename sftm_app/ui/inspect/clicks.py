"""What was clicked. It comes from the browser, so each answer is checked or None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftm_app.ui.widgets import Selection

MOST_FEATURES = 1 << 20


@dataclass(frozen=True)
class Target:
    """Where a link leads: a feature (from 0) of one task, or a pair of tasks."""

    tasks: tuple[str, ...]
    feature: int | None = None


def layer_name(selection: Selection) -> str | None:
    """The name that a cell of the map carries."""
    return selection.customdata if isinstance(selection.customdata, str) else None


def spectrum_point(selection: Selection) -> tuple[int, int] | None:
    """Member and feature, both from 0, that a point of a spectrum carries."""
    data = selection.customdata
    if not isinstance(data, tuple) or len(data) != 2:
        return None
    member, feature = whole(data[0]), whole(data[1])
    return None if member is None or feature is None else (member, feature)


def link_target(selection: Selection, members: Sequence[str]) -> Target | None:
    """The target of a `view_link`: ("feature", task, feature) or ("overlap", task, task); None for any other."""
    data = selection.customdata
    if not isinstance(data, tuple) or len(data) != 3:
        return None
    kind, task, last = data
    feature = whole(last)
    if kind == "feature" and task in members and feature is not None:
        return Target((str(task),), feature)
    if kind == "overlap" and task in members and last in members:
        return Target((str(task), str(last)))
    return None


def whole(value: Any) -> int | None:
    """A count of features as a whole number; None for anything else."""
    inside = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_FEATURES
    return int(value) if inside else None
