"""A recipe: everything that makes a merge, as a small YAML file that the UI, the CLI and Python share."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml

from sftm_app.devices import DEVICES
from sftm_app.errors import RecipeError
from sftm_app.merging.methods import get_method
from sftm_app.merging.params import NoParams, make_params, refuse_unknown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
MAX_RECIPE_BYTES = 1024 * 1024
MAX_BRACKETS = 1000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class TaskEntry:
    """One task: where its checkpoint is, what it is called, and the positive factor on its changes."""

    path: str
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Output:
    """Where the merged model goes. dtype None keeps the base's types."""

    path: str | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"


@dataclass(frozen=True)
class Recipe:
    """A whole merge. `params` is the frozen Params dataclass of the method."""

    base: str
    tasks: tuple[TaskEntry, ...]
    method: str = "sftm"
    params: Any = field(default_factory=NoParams)
    output: Output = Output()
    device: str = "auto"


def make_recipe(
    base: str | Path,
    tasks: Sequence[Any],
    method: str = "sftm",
    params: Mapping[str, Any] | None = None,
    output: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Recipe:
    """Check every field and build a Recipe. A task is a path, or a mapping with path, name and weight.

    Raises
        RecipeError: an unknown key (with the nearest known one) or a value of the wrong kind.
    """
    if not _is_path(base):
        raise RecipeError("base: should be the path of a checkpoint folder.")
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise RecipeError("tasks: should be a list of paths, or of entries with path, name and weight.")
    if device not in DEVICES:
        raise RecipeError(f"device: {device!r} is not one of {', '.join(DEVICES)}.")
    found = get_method(method)
    checked = make_params(found.params, _mapping(params, "params"), f"params of {method}")
    return Recipe(str(base), _name_tasks(tasks), method, checked, _make_output(_mapping(output, "output")), device)


def _is_path(value: Any) -> TypeGuard[str | Path]:
    return isinstance(value, str | Path) and str(value) != "" and "\0" not in str(value)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: should be a table of names and values, not {value!r}.")
    return value


def _name_tasks(tasks: Sequence[Any]) -> tuple[TaskEntry, ...]:
    entries: list[TaskEntry] = []
    for index, given in enumerate(tasks):
        where = f"tasks, entry {index + 1}"
        task: Mapping[str, Any] = {"path": given} if isinstance(given, str | Path) else _mapping(given, where)
        refuse_unknown(task, ("path", "name", "weight"), where)
        path, weight = task.get("path"), task.get("weight", 1.0)
        if not _is_path(path):
            raise RecipeError(f"{where}: needs a `path`, the folder of the checkpoint.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
            raise RecipeError(f"{where}: the weight is {weight!r}; it should be a positive number.")
        name = str(task.get("name") or default_name(path, {entry.name for entry in entries}))
        entries.append(TaskEntry(str(path), name, float(weight)))
    return tuple(entries)


def default_name(path: str | Path, taken: set[str]) -> str:
    """A task name from the folder's name, unlike any in `taken`."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name).strip("-.")[:56] or "task"
    stem = stem if stem[0].isalnum() else f"task{stem}"
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{stem}-{n}"
    return name


def _make_output(output: Mapping[str, Any]) -> Output:
    refuse_unknown(output, ("path", "dtype", "max_shard_size"), "output")
    path, dtype, size = (output.get(key, default) for key, default in dataclasses.asdict(Output()).items())
    if path is not None and not _is_path(path):
        raise RecipeError("output: path should be the path of a folder, or null.")
    if dtype is not None and dtype not in list(DTYPES):
        raise RecipeError(f"output: dtype {dtype!r} is not one of {', '.join(DTYPES)}, or null for the base's.")
    parse_size(size)
    return Output(None if path is None else str(path), dtype, str(size))


def parse_size(text: str) -> int:
    """A size such as "5GB" in bytes (powers of ten, as transformers counts).

    Raises
        RecipeError: when it is not understood.
    """
    found = _SIZE.fullmatch(str(text).strip())
    n_bytes = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= n_bytes <= 2**63:
        raise RecipeError(f"max_shard_size: {text!r} is no size. Write it like 5GB or 500MB.")
    return int(n_bytes)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, in the order of the documentation."""
    return {
        "base": recipe.base,
        "tasks": [dataclasses.asdict(task) for task in recipe.tasks],
        "method": recipe.method,
        "params": dataclasses.asdict(recipe.params),
        "output": dataclasses.asdict(recipe.output),
        "device": recipe.device,
    }


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML; recipe_from_yaml gives the same recipe back."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_from_yaml(text: str) -> Recipe:
    """Read and check a recipe.

    Raises
        RecipeError: not YAML, unknown keys, wrong values.
    """
    # The reader's time grows with the square of the depth: minutes for ten thousand brackets.
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise RecipeError("The recipe is nested too deeply to be one.")
    try:
        # A few aliases of aliases can stand for gigabytes, which an error message would spell out.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError("The recipe uses a YAML alias (`*name`). Write the value out in its place.")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"The recipe is not valid YAML{where}. Mend it there.") from None
    except ValueError as error:  # such as a date in the thirteenth month, or a number of thousands of digits
        raise RecipeError(f"The recipe holds a value that YAML cannot read ({error}). Mend it.") from None
    except RecursionError:
        raise RecipeError("The recipe is nested too deeply to be one.") from None
    if not isinstance(value, dict):
        raise RecipeError("The recipe should be a table with base, tasks, method, params, output and device.")
    refuse_unknown(value, [item.name for item in dataclasses.fields(Recipe)], "recipe")
    for key in ("base", "tasks"):
        if key not in value:
            raise RecipeError(f"The recipe has no `{key}`. Add it.")
    return make_recipe(**value)


def load_recipe(path: str | Path, start: Path | None = None) -> Recipe:
    """Read a recipe file. Relative paths in it are taken from `start`, by default the folder of the recipe.

    Raises
        RecipeError: the file cannot be read, or see recipe_from_yaml.
    """
    file = Path(os.path.expanduser(path))
    try:
        if file.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{file}: is too large for a recipe. Pick a YAML file.")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}).") from None
    try:
        recipe = recipe_from_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    return absolute(recipe, start or file.parent)


def absolute(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every relative path taken from `folder`."""

    def place(path: str) -> str:
        return str((folder / os.path.expanduser(path)).resolve())

    output = recipe.output
    if output.path is not None:
        output = dataclasses.replace(output, path=place(output.path))
    tasks = tuple(dataclasses.replace(task, path=place(task.path)) for task in recipe.tasks)
    return dataclasses.replace(recipe, base=place(recipe.base), tasks=tasks, output=output)
