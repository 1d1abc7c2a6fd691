"""The page in an address: which base and tasks a shared view is about, which tab, and what it asks of the tabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from sftm_app.errors import InputError
from sftm_app.planning.recipe import make_recipe
from sftm_app.ui.loading import checked, pack_workspace
from sftm_app.ui.settings import Settings, allowed_all
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import is_view_field
from sftm_app.ui.workspace import Workspace

MOST_TASKS = 128
_PAGE = {"demo", "base", "with", "role", "tokenizer", "own-weights", "tab"}


def page_to_query(studio: Studio, ws: Workspace, tab: str) -> str:
    """The models and the tab as the query of an address; "" while nothing is loaded."""
    return urlencode([*workspace_to_query(studio, ws), ("tab", tab)]) if ws.ready else ""


def asked_of_tabs(query: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """What an address asks of the tabs: (part, text). The fields of Inspect stand in an address without a name."""
    others = {name: values[0] for name, values in query.items() if name not in _PAGE}
    view = {name: others.pop(name) for name in tuple(others) if is_view_field(name)}
    return tuple(others.items()) + ((("view", urlencode(view)),) if view else ())


def workspace_to_query(studio: Studio, ws: Workspace) -> list[tuple[str, str]]:
    """A demo by its name; otherwise base and tasks by their paths, relative to the models folder if they lie in it."""
    for pack in studio.packs:
        if _content(ws) == _content(pack_workspace(pack)):
            return [("demo", pack.name)]
    query = [("base", _short(studio.settings, ws.base))]
    query += [("with", f"{task.name}:{_short(studio.settings, task.path)}") for task in ws.tasks]
    query += [("role", f"{role}:{pattern}") for pattern, role in ws.roles]
    query += [("tokenizer", ws.tokenizer)] if ws.tokenizer else []
    if any(task.weight != 1.0 for task in ws.tasks):
        query.append(("own-weights", ",".join(f"{task.weight:.9g}" for task in ws.tasks)))
    return query


def workspace_from_query(studio: Studio, query: Mapping[str, Sequence[str]]) -> Workspace | None:
    """The workspace that an address names, checked like one that is picked; None if it names none. It is not stored.

    Raises:
        InputError: there is no such demo, a path is not allowed, or base and tasks do not fit.
    """
    demos = query.get("demo", ())
    if demos:
        pack = next((pack for pack in studio.packs if pack.name == demos[0]), None)
        if pack is None:
            known = ", ".join(pack.name for pack in studio.packs)
            raise InputError(f"The address names the demo {demos[0][:80]!r}, which does not exist. Demos are {known}.")
        return checked(studio, pack_workspace(pack))
    bases, given = query.get("base", ()), query.get("with", ())
    if not bases or not given:
        return None
    if len(given) > MOST_TASKS:
        raise InputError(f"The address names {len(given)} tasks; an address may name at most {MOST_TASKS}.")
    named = [text.partition(":") for text in given]
    base, *paths = allowed_all(studio.settings, [bases[0], *(path for _, _, path in named)])
    # make_recipe checks names and roles from an address too.
    weights = _own_weights(query.get("own-weights", ()), len(named))
    tasks = [
        {"path": path, "name": name, "weight": weight}
        for (name, _, _), path, weight in zip(named, paths, weights, strict=True)
    ]
    roles = {pattern: role for role, _, pattern in (text.partition(":") for text in query.get("role", ()))}
    tokenizer = next(iter(query.get("tokenizer", ())), None)
    recipe = make_recipe(base, tasks, roles=roles, tokenizer=tokenizer)
    return checked(studio, Workspace(recipe.base, recipe.tasks, roles=recipe.roles, tokenizer=recipe.tokenizer))


def _own_weights(given: Sequence[str], n_tasks: int) -> list[float]:
    try:
        found = [float(part) for part in given[0].split(",")] if given else [1.0] * n_tasks
    except ValueError:
        found = []
    if len(found) != n_tasks:
        raise InputError(f"The weights in the address, {given[0][:80]!r}, are not {n_tasks} numbers.")
    return found


def _content(ws: Workspace) -> tuple[object, ...]:
    return ws.base, ws.tasks, ws.roles, ws.tokenizer


def _short(settings: Settings, path: str) -> str:
    place = Path(path)
    return str(place.relative_to(settings.models_dir)) if settings.models_dir in place.parents else path
