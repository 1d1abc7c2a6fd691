"""What Inspect shows, as one value and as the query of an address, so that a view can be shared and opened again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from pydantic import BaseModel, Field, ValidationError

from sftm_app.errors import RecipeError, SFTMError
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.ui.wording import format_value

FIRST_MEASURE = "change"
MOST_QUERY = 1 << 16
# Base, tasks and roles as well as the view: see address.MOST_TASKS.
MOST_FIELDS = 1024
MOST_NAME = 512


@dataclass(frozen=True)
class Pinned:
    """A layer under some settings, kept for comparison. settings None: the default settings."""

    layer: str
    settings: MergeSettings | None = None


@dataclass(frozen=True)
class View:
    """What is shown. Where a text is empty, the page chooses.

    Attributes:
        about: the task whose values colour the map; empty for all tasks.
        first, second: the pair of tasks.
        task, feature: the singular feature, counted from 0.
        settings: the what-if.
    """

    measure: str = ""
    about: str = ""
    layer: str = ""
    first: str = ""
    second: str = ""
    task: str = ""
    feature: int = 0
    settings: MergeSettings | None = None
    pinned: Pinned | None = None


_Name = Annotated[str, Field(max_length=MOST_NAME)]


class _Fields(BaseModel):
    """The fields of a view in an address, apart from its settings. Features are counted from 1, as on the page."""

    measure: _Name = ""
    about: _Name = ""
    layer: _Name = ""
    first: _Name = ""
    second: _Name = ""
    task: _Name = ""
    feature: Annotated[int, Field(ge=1, lt=10**8)] = 1


_NAMES = tuple(name for name in _Fields.model_fields if name != "feature")
_SETTINGS = {"method", "weights", *(name for method in METHODS.values() for name in controls(method.params))}


def is_view_field(name: str) -> bool:
    """Whether a field of an address belongs to a view."""
    return name in _Fields.model_fields or name in _SETTINGS or name == "pin"


def view_to_query(view: View) -> list[tuple[str, str]]:
    """The names and values of an address."""
    pairs = [(name, getattr(view, name)) for name in _NAMES]
    if view.task:
        pairs.append(("feature", str(view.feature + 1)))
    pairs += settings_to_query(view.settings)
    if view.pinned is not None:
        pairs.append(("pin", urlencode([("layer", view.pinned.layer), *settings_to_query(view.pinned.settings)])))
    return [(name, value) for name, value in pairs if value]


def settings_to_query(settings: MergeSettings | None) -> list[tuple[str, str]]:
    """A method, its parameters, and the weights if one of them is not 1."""
    if settings is None:
        return []
    pairs = [("method", settings.method)]
    for name, control in controls(type(settings.params)).items():
        pairs.append((name, format_value(control.kind, getattr(settings.params, name))))
    if any(weight != 1.0 for weight in settings.weights):
        pairs.append(("weights", ",".join(f"{weight:g}" for weight in settings.weights)))
    return pairs


@dataclass(frozen=True)
class RequestedView:
    """The view that an address names. problems: sentences on what in it was not understood."""

    view: View
    problems: tuple[str, ...] = ()


def view_from_query(query: Mapping[str, str], n_tasks: int) -> RequestedView:
    """The view of an address for a workspace of `n_tasks`. What is not understood is left out and reported.

    Only the page knows whether the models have layers and tasks of these names.
    """
    problems: list[str] = []
    fields = _valid_fields(query, problems)
    pinned = None
    if "pin" in query:
        inner = read_query(query["pin"])
        layer = _valid_fields({"layer": inner.get("layer", "")}, problems).layer
        if layer:
            pinned = Pinned(layer, settings_from_query(inner, n_tasks, problems))
    named = fields.model_dump() | {"feature": fields.feature - 1}
    view = View(**named, settings=settings_from_query(query, n_tasks, problems), pinned=pinned)
    return RequestedView(view, tuple(problems))


def _valid_fields(query: Mapping[str, str], problems: list[str]) -> _Fields:
    given = {name: query[name] for name in _Fields.model_fields if name in query}
    try:
        return _Fields.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            name = str(problem["loc"][0])
            problems.append(f"The address's {name} {given.pop(name)[:80]!r} was ignored: {problem['msg']}.")
        return _Fields.model_validate(given)


def read_fields(text: str) -> dict[str, list[str]]:
    """The query of an address as names and all their values; empty if it is not a query or has too many fields."""
    try:
        return dict(parse_qs(text[:MOST_QUERY], max_num_fields=MOST_FIELDS))
    except ValueError:
        return {}


def read_query(text: str) -> dict[str, str]:
    """The same with one value for each name, the first."""
    return {name: values[0] for name, values in read_fields(text).items()}


def settings_from_query(query: Mapping[str, str], n_tasks: int, problems: list[str]) -> MergeSettings | None:
    """The settings that an address names; None, and a sentence in `problems`, if they are not valid."""
    method = query.get("method", "")
    if not method:
        return None
    try:
        known = controls(METHODS[method].params) if method in METHODS else {}
        values = {name: _value(control.kind, query[name]) for name, control in known.items() if name in query}
        return merge_settings(method, values, _weights(query.get("weights", ""), n_tasks))
    except (SFTMError, ValueError) as error:
        problems.append(f"The settings in the address were ignored: {error}")
        return None


def _value(kind: str, text: str) -> Any:
    return float(text) if kind == "number" else text


def _weights(text: str, n_tasks: int) -> Sequence[float]:
    given = [float(part) for part in text.split(",")] if text else [1.0] * n_tasks
    if len(given) != n_tasks:
        raise RecipeError(f"it has {len(given)} weights for {n_tasks} tasks.")
    return given
