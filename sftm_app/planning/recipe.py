"""A recipe: everything that defines a merge, as a small YAML file that the UI, the CLI and Python share."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml

from sftm_app.architecture.role_rules import ROLE_KINDS
from sftm_app.devices import DEVICES
from sftm_app.errors import HubError, NotDownloadedError, RecipeError
from sftm_app.methods import get_method
from sftm_app.methods.params import NoParams, check_size_rank, make_params, refuse_unknown, values_of
from sftm_app.methods.settings import MAX_WEIGHT, WEIGHTS
from sftm_app.weights.file_names import INDEX_SUFFIX
from sftm_app.weights.hub_names import HUB_PREFIX, HubRef, cached_snapshot, hub_cache, hub_name, parse_ref
from sftm_app.weights.regular import is_path, read_file

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
KINDS = ("model", "adapter")
DEFAULT_METHOD = "sftm"
MEASURE = ("auto", "all", "none")
MAX_RECIPE_BYTES = 1024 * 1024
MAX_BRACKETS = 1000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class TaskEntry:
    """One task: the path of its checkpoint, its name, and its weight, which takes its changes away if negative."""

    path: str
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Output:
    """What is written, and where.

    Attributes:
        path: the output folder.
        dtype: of the weights; None keeps the base's (of an adapter: the adapters').
        max_shard_size: the largest size of a weight file.
        kind: "model", or "adapter" for one LoRA adapter.
        rank, energy: of an adapter: at most so many features per layer (a count or a fraction), and no more than hold
            that share (0..1) of the layer's energy.
    """

    path: str | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    kind: str = "model"
    rank: int | float | None = None
    energy: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole merge.

    Attributes:
        base, tasks: the checkpoints.
        method, params: the method's name and its frozen Params.
        output: what is written.
        device: "auto", "cpu", "cuda" or "mps".
        roles: (pattern of tensor names, word of ROLE_KINDS), over what the architecture says; a later one wins.
        split_fused: whether to merge query, key and value (or gate and up) one by one where one matrix holds them.
        memory: a size such as "4GB"; a merge that needs more does not begin.
        measure: the layers on which to measure what each task keeps: "all", "none", or "auto" (where it is quick, or
            where the method computes features anyway). The merged model is the same.
        tokenizer: whose tokenizer the merged model has, where those of base and tasks differ: "base", "union" (all
            tokens) or "task NAME"; None takes the union where no row means different tokens, and refuses otherwise.
    """

    base: str
    tasks: tuple[TaskEntry, ...]
    method: str = DEFAULT_METHOD
    params: Any = field(default_factory=NoParams)
    output: Output = Output()
    device: str = "auto"
    roles: tuple[tuple[str, str], ...] = ()
    split_fused: bool = False
    memory: str | None = None
    measure: str = "auto"
    tokenizer: str | None = None


def make_recipe(
    base: str | Path,
    tasks: Sequence[Any],
    method: str = DEFAULT_METHOD,
    params: Mapping[str, Any] | None = None,
    output: Mapping[str, Any] | None = None,
    device: str = "auto",
    roles: Mapping[str, str] | None = None,
    split_fused: bool = False,
    memory: str | None = None,
    measure: str = "auto",
    tokenizer: str | None = None,
) -> Recipe:
    """Check every field and build a recipe.

    Args:
        base: the path of the base.
        tasks: paths, or mappings with path, name and weight.
        method: a method's name.
        params: its parameters by name.
        output: fields of `Output`.
        device, split_fused, memory, measure, tokenizer: see `Recipe`.
        roles: pattern of tensor names -> what they are, such as {"*.gate.weight": "embedding"}; see ROLE_KINDS.

    Raises:
        RecipeError: a key is unknown (the nearest known one is given), or a value has the wrong kind.
    """
    if not _is_path(base):
        raise RecipeError("base: expected the path of a checkpoint folder.")
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise RecipeError("tasks: expected a list of paths, or of entries with path, name and weight.")
    if device not in DEVICES:
        raise RecipeError(f"device: {device!r} is not one of {', '.join(DEVICES)}.")
    if not isinstance(split_fused, bool):
        raise RecipeError(f"split_fused: {split_fused!r} is neither true nor false.")
    if memory is not None:
        parse_size(memory, "memory")
    if measure not in MEASURE:
        raise RecipeError(f"measure: {measure!r} is not one of {', '.join(MEASURE)}.")
    found = get_method(method)
    checked = make_params(found.params, _mapping(params, "params"), f"params of {method}")
    out = _make_output(_mapping(output, "output"))
    by_pattern = _make_roles(_mapping(roles, "roles"))
    named = _name_tasks(tasks)
    check_tokenizer(tokenizer, [task.name for task in named])
    return Recipe(str(base), named, method, checked, out, device, by_pattern, split_fused, memory, measure, tokenizer)


def tokenizer_choices(tasks: Sequence[str]) -> tuple[str, ...]:
    """What `tokenizer` may be for tasks of these names."""
    return "base", "union", *(f"task {name}" for name in tasks)


def check_tokenizer(tokenizer: Any, tasks: Sequence[str]) -> None:
    """Refuse a `tokenizer` that is not one of `tokenizer_choices`, or None.

    Raises:
        RecipeError: it is none of them.
    """
    if tokenizer is not None and tokenizer not in tokenizer_choices(tasks):
        raise RecipeError(f"tokenizer: {tokenizer!r} is not one of {', '.join(tokenizer_choices(tasks))}.")


def _make_roles(roles: Mapping[Any, Any]) -> tuple[tuple[str, str], ...]:
    for pattern, role in roles.items():
        if not isinstance(pattern, str) or not pattern:
            raise RecipeError(f"roles: {pattern!r} is not a pattern of tensor names, such as '*.norm.weight'.")
        refuse_unknown([role], ROLE_KINDS, f"roles: {pattern}")
    return tuple(roles.items())


def _is_path(value: Any) -> TypeGuard[str | Path]:
    return isinstance(value, str | Path) and is_path(str(value))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where}: expected a table of names and values, found {value!r}.")
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
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < abs(weight) <= MAX_WEIGHT:
            raise RecipeError(f"{where}: the weight is {weight!r}. {WEIGHTS}")
        name = str(task.get("name") or default_name(path, {entry.name for entry in entries}))
        entries.append(TaskEntry(str(path), name, float(weight)))
    return tuple(entries)


def default_name(path: str | Path, taken: set[str]) -> str:
    """A task name from the folder's name (for a model from the hub, the model's), different from all in `taken`."""
    fetched = hub_name(path)
    own = fetched.partition("@")[0].rpartition("/")[2] if fetched else _own_name(Path(path))
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-.")[:56] or "task"
    stem = stem if stem[0].isalnum() else f"task{stem}"
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{stem}-{n}"
    return name


def _own_name(path: Path) -> str:
    """A folder's name, or a weight file's without its suffix; a file called "model" gets its folder's name."""
    if path.name.startswith("models--"):  # a repository's folder in a hub cache: models--ORG--NAME
        return path.name.rpartition("--")[2]
    if not path.name.endswith((".safetensors", INDEX_SUFFIX)):
        return path.name
    stem = path.name.removesuffix(".index.json").removesuffix(".safetensors")
    return path.absolute().parent.name if stem == "model" else stem


def _make_output(output: Mapping[str, Any]) -> Output:
    values = dataclasses.asdict(Output())
    refuse_unknown(output, values, "output")
    path, dtype, size, kind, rank, energy = (values | dict(output)).values()
    if path is not None and not _is_path(path):
        raise RecipeError("output: path: expected the path of a folder, or null.")
    if dtype is not None and dtype not in list(DTYPES):
        raise RecipeError(f"output: dtype {dtype!r} is not one of {', '.join(DTYPES)}, or null for the base's.")
    if kind not in KINDS:
        raise RecipeError(f"output: kind {kind!r} is not one of {', '.join(KINDS)}.")
    rank = check_size_rank(rank, "output: rank")
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1):
        raise RecipeError(
            f"output: energy {energy!r} is not a share. Give a number above 0 and at most 1, such as 0.9."
        )
    if kind == "model" and (rank is not None or energy is not None):
        raise RecipeError("output: rank and energy are for adapters. Set `kind: adapter`, or leave them out.")
    parse_size(size, "max_shard_size")
    return Output(None if path is None else str(path), dtype, str(size), kind, rank, energy)


def parse_size(text: str, where: str = "size") -> int:
    """Read a size such as "5GB".

    Args:
        text: a number with a unit, in powers of ten, as transformers counts.
        where: what it is, for the error.

    Returns:
        Bytes.

    Raises:
        RecipeError: it is not understood.
    """
    found = _SIZE.fullmatch(str(text).strip())
    n_bytes = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= n_bytes <= 2**63:
        raise RecipeError(f"{where}: {text!r} is not a size. Write it like 5GB or 500MB.")
    return int(n_bytes)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, in the order of the README."""
    return {
        "base": recipe.base,
        "tasks": [dataclasses.asdict(task) for task in recipe.tasks],
        "method": recipe.method,
        "params": values_of(recipe.params),
        "output": dataclasses.asdict(recipe.output),
        "device": recipe.device,
        "roles": dict(recipe.roles),
        "split_fused": recipe.split_fused,
        "memory": recipe.memory,
        "measure": recipe.measure,
        "tokenizer": recipe.tokenizer,
    }


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML; `recipe_from_yaml` reads it back."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_from_yaml(text: str) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: it is not YAML, or has unknown keys or wrong values.
    """
    # The YAML reader's time grows with the square of the depth: minutes for ten thousand brackets.
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise RecipeError("The recipe is nested too deeply. Use the fields of the README only.")
    try:
        # A few aliases of aliases can stand for gigabytes, which an error message would spell out.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError("The recipe uses a YAML alias (`*name`). Write the value out in its place, or quote it.")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"The recipe is not valid YAML{where}. Correct it there.") from None
    except ValueError as error:  # such as a date in the thirteenth month, or a number of thousands of digits
        raise RecipeError(f"The recipe holds a value that YAML cannot read ({error}). Correct it.") from None
    except RecursionError:
        raise RecipeError("The recipe is nested too deeply. Use the fields of the README only.") from None
    known = [item.name for item in dataclasses.fields(Recipe)]
    if not isinstance(value, dict):
        raise RecipeError(f"The recipe: expected a table with {', '.join(known[:-1])} and {known[-1]}.")
    refuse_unknown(value, known, "recipe")
    for key in ("base", "tasks"):
        if key not in value:
            raise RecipeError(f"The recipe has no `{key}`. Add it.")
    return make_recipe(**value)


def load_recipe(path: str | Path, start: Path | None = None) -> Recipe:
    """Read a recipe file.

    Args:
        path: the file.
        start: where relative paths in it start, by default the folder of the recipe.

    Raises:
        RecipeError: the file cannot be read; see also `recipe_from_yaml`.
        HubError: it names a model of the hub that is not in the hub's cache; see `absolute`.
    """
    file = Path(os.path.expanduser(path))
    try:
        text = read_file(file, MAX_RECIPE_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise RecipeError(f"{str(file)[:500]}: cannot be read ({why}). Pick a YAML file.") from None
    try:
        recipe = recipe_from_yaml(text)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    return absolute(recipe, start or file.parent)


def absolute(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """The recipe with absolute paths; relative ones start at `folder`, by default the one this process works in.

    Base and tasks may also be models of the hub, `org/name`, `org/name@revision` or `hub:org/name`, that were
    downloaded before. An existing folder or file takes precedence, except over `hub:`. The hub is not contacted.

    Raises:
        RecipeError: this process works in a folder that was removed.
        HubError: what follows `hub:` is no model's name.
        NotDownloadedError: models of the hub are not on this machine; names all of them.
    """
    missing: list[str] = []

    def place(path: str) -> str:
        try:
            return str(Path(folder or "", os.path.expanduser(path)).resolve())
        except OSError:
            raise RecipeError(
                f"{path[:500]}: the folder that this was started in does not exist any more. Give an absolute path."
            ) from None

    def model(text: str) -> str:
        here = place(text)
        ref = _hub_ref(text, here)
        if ref is None:
            return here
        found = cached_snapshot(ref, hub_cache())
        missing.extend([] if found else [str(ref)])
        return str(found or here)

    output = recipe.output
    if output.path is not None:
        output = dataclasses.replace(output, path=place(output.path))
    base = model(recipe.base)
    tasks = tuple(dataclasses.replace(task, path=model(task.path)) for task in recipe.tasks)
    if missing:
        names = list(dict.fromkeys(missing))
        raise NotDownloadedError(names, recipe.base, [task.path for task in recipe.tasks])
    return dataclasses.replace(recipe, base=base, tasks=tasks, output=output)


def _hub_ref(text: str, here: str) -> HubRef | None:
    """The model of the hub that a text means; None for a path. here: the path that it would be."""
    if text.startswith(HUB_PREFIX):
        return parse_ref(text)
    if os.path.lexists(here) or text.startswith(("/", ".", "~")) or "\\" in text:
        return None
    try:
        return parse_ref(text)
    except HubError:
        return None
