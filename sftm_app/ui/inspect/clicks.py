"""What was clicked. Everything here comes from the browser, so each answer is checked or None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftm_app.inspection.reasons import Neighbour
from sftm_app.ui.inspect.feature_panel import MOST_SHOWN, detail_of
from sftm_app.ui.inspect.showing import feature_of
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import parse_selection

MOST_FEATURES = 1 << 20


def name_of(event: Any) -> str | None:
    """The name that a cell of the map carries."""
    selection = parse_selection(event)
    return selection.customdata if selection and isinstance(selection.customdata, str) else None


def cell_of(event: Any) -> tuple[int, int] | None:
    """Row and column of a heatmap's cell, at least 0."""
    selection = parse_selection(event)
    return selection.cell if selection else None


def place_of(event: Any) -> tuple[int, int] | None:
    """Member and feature, both from 0, that a point of a spectrum carries."""
    selection = parse_selection(event)
    data = selection.customdata if selection else None
    if not isinstance(data, tuple) or len(data) != 2:
        return None
    member, feature = _whole(data[0]), _whole(data[1])
    return None if member is None or feature is None else (member, feature)


def feature_behind(event: Any, studio: Studio, chosen: InspectState) -> Neighbour | None:
    """The neighbour whose bar was clicked in the plot of a feature's coefficient."""
    selection = parse_selection(event)
    place = _whole(selection.customdata) if selection else None
    looked = chosen.look(studio)
    detail = detail_of(studio, looked, chosen.member(looked), feature_of(studio, looked, chosen), chosen.settings)
    if detail is None or place is None or place >= min(MOST_SHOWN, len(detail.neighbours)):
        return None
    return detail.neighbours[place]


@dataclass(frozen=True)
class Link:
    """Where a link leads: a feature (from 0) of one task, or a pair of tasks."""

    tasks: tuple[str, ...]
    feature: int | None = None


def link_of(event: Any, members: Sequence[str]) -> Link | None:
    """The target of a `view_link`: ("feature", task, feature) or ("overlap", task, task); None for any other."""
    selection = parse_selection(event)
    data = selection.customdata if selection else None
    if not isinstance(data, tuple) or len(data) != 3:
        return None
    kind, task, last = data
    feature = _whole(last)
    if kind == "feature" and task in members and feature is not None:
        return Link((str(task),), feature)
    if kind == "overlap" and task in members and last in members:
        return Link((str(task), str(last)))
    return None


def _whole(value: Any) -> int | None:
    inside = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_FEATURES
    return int(value) if inside else None
