"""What the page shows, as one value, and as the query of an address: a view can be shared and opened again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from sftm_app.errors import RecipeError, SFTMError
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.ui.rank_slider import rank_shown

TABS = ("models", "inspect", "merge", "evaluate")
FIRST_MEASURE = "change"
MOST_QUERY = 1 << 16
MOST_NAME = 512
# Base, tasks and roles besides the view: see address.MOST_TASKS.
MOST_FIELDS = 1024


@dataclass(frozen=True)
class Pinned:
    """A layer under some settings, kept to be compared with another. settings None: the method's defaults."""

    layer: str
    settings: MergeSettings | None = None


@dataclass(frozen=True)
class View:
    """What is shown. Empty texts stand for "not chosen": the page then chooses.

    about: the task whose numbers colour the map; empty for all of them. first, second: the pair of tasks. task,
    feature: the singular feature, counted from 0. settings: the what-if.
    """

    tab: str = ""
    measure: str = ""
    about: str = ""
    layer: str = ""
    first: str = ""
    second: str = ""
    task: str = ""
    feature: int = 0
    settings: MergeSettings | None = None
    pinned: Pinned | None = None


def view_to_query(view: View) -> list[tuple[str, str]]:
    """The names and values of an address; features are counted from 1 there, as they are on the page."""
    pairs = [(name, getattr(view, name)) for name in ("tab", "measure", "about", "layer", "first", "second", "task")]
    if view.task:
        pairs.append(("feature", str(view.feature + 1)))
    pairs += settings_to_query(view.settings)
    if view.pinned is not None:
        pairs.append(("pin", urlencode([("layer", view.pinned.layer), *settings_to_query(view.pinned.settings)])))
    return [(name, value) for name, value in pairs if value]


def settings_to_query(settings: MergeSettings | None) -> list[tuple[str, str]]:
    """A method, its parameters, and the weights where one is not 1."""
    if settings is None:
        return []
    pairs = [("method", settings.method)]
    for name, control in controls(type(settings.params)).items():
        value = getattr(settings.params, name)
        pairs.append((name, rank_shown(value) if control.kind == "rank" else _shown(value)))
    if any(weight != 1.0 for weight in settings.weights):
        pairs.append(("weights", ",".join(f"{weight:g}" for weight in settings.weights)))
    return pairs


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Asked:
    """A view that an address asks for, and in sentences what of it is not understood."""

    view: View
    problems: tuple[str, ...] = field(default=())


def view_from_query(query: Mapping[str, str], n_tasks: int) -> Asked:
    """The view of an address for a workspace of `n_tasks`. Nothing in it is trusted: what is odd is left out and said.

    Whether layers and tasks of these names exist is for the page to see, which knows the models.
    """
    problems: list[str] = []
    texts = {name: query[name] for name in ("measure", "about", "layer", "first", "second", "task") if name in query}
    for name in [name for name, text in texts.items() if len(text) > MOST_NAME]:
        problems.append(f"The address's {name} has {len(texts.pop(name))} characters, more than {MOST_NAME}.")
    feature = _whole(query.get("feature", ""))
    pinned = None
    if "pin" in query and len(query["pin"]) <= MOST_QUERY:
        inner = read_query(query["pin"])
        if inner.get("layer") and len(inner["layer"]) <= MOST_NAME:
            pinned = Pinned(inner["layer"], settings_from_query(inner, n_tasks, problems))
    tab = query.get("tab", "")
    view = View(
        tab=tab if tab in TABS else "",
        feature=max(0, feature - 1),
        settings=settings_from_query(query, n_tasks, problems),
        pinned=pinned,
        **texts,
    )
    return Asked(view, tuple(problems))


def read_fields(text: str) -> dict[str, list[str]]:
    """The query of an address as names and all their values; empty where it is no query, or has too many fields."""
    try:
        return dict(parse_qs(text[:MOST_QUERY], max_num_fields=MOST_FIELDS))
    except ValueError:
        return {}


def read_query(text: str) -> dict[str, str]:
    """The same with one value for each name: of one that stands twice the first counts."""
    return {name: values[0] for name, values in read_fields(text).items()}


def settings_from_query(query: Mapping[str, str], n_tasks: int, problems: list[str]) -> MergeSettings | None:
    """The settings that an address names; None, and a sentence in `problems`, where they do not hold."""
    method = query.get("method", "")
    if not method:
        return None
    try:
        known = controls(METHODS[method].params) if method in METHODS else {}
        values = {name: _value(control.kind, query[name]) for name, control in known.items() if name in query}
        return merge_settings(method, values, _weights(query.get("weights", ""), n_tasks))
    except (SFTMError, ValueError) as error:
        problems.append(f"The address's settings are left out: {error}")
        return None


def _value(kind: str, text: str) -> Any:
    return float(text) if kind == "number" else text


def _weights(text: str, n_tasks: int) -> Sequence[float]:
    given = [float(part) for part in text.split(",")] if text else [1.0] * n_tasks
    if len(given) != n_tasks:
        raise RecipeError(f"it has {len(given)} weights for {n_tasks} tasks.")
    return given


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def settings_title(settings: MergeSettings) -> str:
    """The settings in a few words: "SFTM, rank 25%, scaling 0.8, weights set". Defaults are left out."""
    method = METHODS[settings.method]
    default = method.params()
    words = [method.title]
    for item in dataclasses.fields(settings.params):
        value = getattr(settings.params, item.name)
        if value != getattr(default, item.name):
            control = controls(method.params)[item.name]
            shown = rank_shown(value) if control.kind == "rank" else _shown(value)
            words.append(f"{control.label.lower()} {shown}" if control.kind != "choice" else shown)
    if len(set(settings.weights)) > 1 or any(weight != 1.0 for weight in settings.weights):
        words.append("weights set")
    return ", ".join(words)
