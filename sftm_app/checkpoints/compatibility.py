"""Do base and tasks fit? Every mismatch at once, in sentences, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftm_app.checkpoints.architecture import Architecture, read_architecture
from sftm_app.checkpoints.checkpoint import Checkpoint, TensorReader, open_reader
from sftm_app.errors import CheckpointError, CompatibilityError, InputError

MAX_NAMED = 5
# What a config says about its checkpoint rather than about the model.
_SAVING_KEYS = ("num_labels", "use_cache", "torchscript", "return_dict", "output_attentions", "output_hidden_states")
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Source:
    """A task checkpoint with its name and its weight in the merge (a positive factor on its task matrices)."""

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0


@dataclass(frozen=True)
class Match:
    """How one task lines up with the base.

    names: name in the base -> name in the task's files, for every tensor that both hold in the same shape.
    heads: names in the task's files that the base lacks or holds in another shape, outside the backbone.
    """

    names: dict[str, str]
    heads: tuple[str, ...]


@dataclass(frozen=True)
class Preflight:
    """What the headers tell. `problems` refuse the merge; `notes` are worth knowing."""

    base: Checkpoint
    tasks: tuple[Source, ...]
    architecture: Architecture
    matches: tuple[Match, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def require(self) -> Preflight:
        """Itself, when there is no problem.

        Raises
            CompatibilityError: carrying every problem.
        """
        if self.problems:
            raise CompatibilityError(self.problems)
        return self


def preflight(base: Checkpoint, tasks: Sequence[Source]) -> Preflight:
    """Compare base and tasks by their configs and headers.

    Raises
        CheckpointError: the base's architecture is not known.
    """
    try:
        architecture = read_architecture(base.config)
    except CheckpointError as error:
        raise CheckpointError(f"{base.path}: {error}") from None
    problems = _check_set(base, tasks)
    notes = _picked_twice(tasks)
    matches = []
    for task in tasks:
        match, found, said = _match(base, task, architecture)
        matches.append(match)
        problems += found
        notes += said
    matches = _apart_where_some_lack_it(matches)
    copied = [name for name in base.tensors if not any(name in match.names for match in matches)]
    if copied and tasks and not problems:
        notes.append(f"{len(copied)} tensors are in no task and are copied from the base: {_listing(copied)}.")
    dtypes = {" and ".join(source.dtypes) for source in (base, *(task.checkpoint for task in tasks))}
    if len(dtypes) > 1:
        notes.append(f"The types differ ({', '.join(sorted(dtypes))}); everything is computed in float32.")
    return Preflight(base, tuple(tasks), architecture, tuple(matches), tuple(problems), tuple(notes))


def _apart_where_some_lack_it(matches: list[Match]) -> list[Match]:
    """A tensor that is one task's head is kept apart for all of them: heads of some tasks only are never mixed."""
    head_names = {head for match in matches for head in match.heads}
    return [
        Match(
            {ours: theirs for ours, theirs in match.names.items() if theirs not in head_names},
            match.heads + tuple(theirs for theirs in match.names.values() if theirs in head_names),
        )
        for match in matches
    ]


def _check_set(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    problems = [] if tasks else ["No task checkpoint is chosen. Add at least one."]
    names = [task.name for task in tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"The name {name!r} is given to {names.count(name)} tasks. Give each task its own name.")
    for task in tasks:
        if not TASK_NAME.fullmatch(task.name):
            problems.append(
                f"The task name {task.name!r} cannot be a file name. Use up to 64 letters, digits, dots, dashes and "
                "underscores, beginning with a letter or digit."
            )
        if not 0 < task.weight < float("inf"):
            problems.append(f"{task.name}: the weight is {task.weight}; it should be a positive number.")
        if task.checkpoint.path == base.path:
            problems.append(f"{task.name}: is the base itself ({base.path}). Pick a checkpoint fine-tuned from it.")
    return problems


def _picked_twice(tasks: Sequence[Source]) -> list[str]:
    """A note for every folder that stands for more than one task: allowed, but seldom meant."""
    paths = [task.checkpoint.path for task in tasks]
    return [
        f"{' and '.join(task.name for task in tasks if task.checkpoint.path == path)} are one and the same checkpoint "
        f"({path}), so it counts more than once."
        for path in dict.fromkeys(paths)
        if paths.count(path) > 1
    ]


def _match(base: Checkpoint, task: Source, architecture: Architecture) -> tuple[Match, list[str], list[str]]:
    checkpoint = task.checkpoint
    if checkpoint.model_type != base.model_type:
        problem = (
            f"{task.name}: is a {checkpoint.model_type!r} model, the base is a {base.model_type!r} model. "
            "Only checkpoints fine-tuned from the base can be merged into it."
        )
        return Match({}, ()), [problem], []
    try:
        task_architecture = read_architecture(checkpoint.config)
    except CheckpointError as error:
        return Match({}, ()), [f"{task.name}: {error}"], []

    prefix = architecture.backbone_prefix
    names: dict[str, str] = {}
    absent, reshaped, retyped = [], [], []
    other_labels = checkpoint.id2label != base.id2label
    for name, info in base.tensors.items():
        found = _find(name, prefix, checkpoint)
        if found is not None and other_labels and not _in_backbone(found, task_architecture):
            continue  # a classifier of the same size for other classes is another head
        if found is None:
            absent.append(name)
        elif checkpoint.tensors[found].is_float != info.is_float:
            retyped.append(name)
            names[name] = found
        elif checkpoint.tensors[found].shape == info.shape:
            names[name] = found
        elif _in_backbone(found, task_architecture):
            reshaped.append((name, info.shape, checkpoint.tensors[found].shape))
    missing = _ought_to_hold(absent, base, checkpoint, prefix)
    matched = set(names.values())
    rest = [name for name in checkpoint.tensors if name not in matched]
    heads = tuple(name for name in rest if not _in_backbone(name, task_architecture))
    known = {_find(name, prefix, checkpoint) for name, _, _ in reshaped}
    unexpected = [name for name in rest if name not in heads and name not in known]

    problems = [
        f"{task.name}: tensor {name!r} has shape {list(theirs)}, in the base it is {list(ours)}"
        f"{', which is its transpose' if theirs == ours[::-1] else ''}."
        for name, ours, theirs in reshaped[:MAX_NAMED]
    ]
    if reshaped:
        more = f"{len(reshaped) - MAX_NAMED} more tensors have another shape. " if len(reshaped) > MAX_NAMED else ""
        problems.append(
            f"{task.name}: {more}It was not fine-tuned from this base, or its vocabulary or image size was changed."
        )
    if retyped:
        problems.append(
            f"{task.name}: {len(retyped)} tensors are integers on one side and floating-point numbers on the other: "
            f"{_listing(retyped)}. Quantised checkpoints cannot be merged: use the one before quantisation."
        )
    if missing:
        problems.append(
            f"{task.name}: {len(missing)} tensors of the base are missing from it: {_listing(missing)}. "
            "The checkpoint is incomplete, or smaller than the base: download it again, or pick another."
        )
    if unexpected:
        problems.append(
            f"{task.name}: holds {len(unexpected)} tensors that the base lacks: {_listing(unexpected)}. "
            "It was not fine-tuned from this base."
        )
    notes = _other_settings(base, task)
    if heads:
        notes.append(f"{task.name}: {_listing(list(heads))} belong to its own head, which is kept apart, not merged.")
    return Match(names, heads), problems, notes


def _other_settings(base: Checkpoint, task: Source) -> list[str]:
    """A note when settings that leave no trace in the shapes differ, such as the number of attention heads."""
    ours, theirs = base.config, task.checkpoint.config
    other = [
        f"{key} ({theirs[key]!r}, in the base {ours[key]!r})"
        for key in ours
        if key in theirs and key not in _SAVING_KEYS and isinstance(ours[key], int | float) and ours[key] != theirs[key]
    ]
    return [f"{task.name}: its config differs in {_listing(other)}; the merged model has the base's."] if other else []


def _ought_to_hold(absent: list[str], base: Checkpoint, task: Checkpoint, prefix: str) -> list[str]:
    """Those tensors of the base that a model of the task's class has when it is as large as the base.

    A classifier without the base's pooler lacks nothing; a task with fewer layers than the base does.
    """
    if not absent:
        return []
    as_large = read_architecture(base.config | {"architectures": task.config.get("architectures")})
    return [name for name in absent if _find_name(name, prefix, as_large.owners) is not None]


def _find(name: str, prefix: str, checkpoint: Checkpoint) -> str | None:
    return _find_name(name, prefix, checkpoint.tensors)


def _find_name(name: str, prefix: str, names: Mapping[str, object]) -> str | None:
    """The same parameter's name in another checkpoint, with or without the backbone's prefix."""
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        if candidate in names:
            return candidate
    return None


def _in_backbone(name: str, architecture: Architecture) -> bool:
    owner = architecture.owners.get(name)
    return owner is None or owner.in_backbone


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def refuse_unchanged(found: Preflight) -> None:
    """Refuse a task whose merged tensors all equal the base's. Reads tensors until the first difference.

    Raises
        InputError: naming every task that equals the base.
    """
    with open_reader(found.base) as base:
        unchanged = []
        for task, match in zip(found.tasks, found.matches, strict=True):
            with open_reader(task.checkpoint) as read:
                if not any(_differs(base, read, ours, theirs) for ours, theirs in match.names.items()):
                    unchanged.append(task.name)
    if unchanged:
        raise InputError(
            f"{', '.join(unchanged)}: every merged tensor equals the base's, so there is nothing to merge. "
            "Pick a checkpoint that was fine-tuned, or take it out."
        )


def _differs(base: TensorReader, task: TensorReader, ours: str, theirs: str) -> bool:
    left, right = base(ours), task(theirs)
    # Compared in the task's type: a task saved in half precision equals its base when rounding explains every change.
    return bool((left.to(right.dtype).float() != right.float()).any()) if right.is_floating_point() else False
