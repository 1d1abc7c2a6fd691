"""Do base and tasks fit? Every mismatch at once, in sentences, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.guess import guess_architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.role_rules import RoleRules, apply_rules
from sftm_app.architecture.roles import assign
from sftm_app.architecture.ties import architecture_of
from sftm_app.errors import CheckpointError, CompatibilityError, InputError
from sftm_app.preflight.adapter_matching import match_adapter
from sftm_app.preflight.matching import Match, Source, match_full
from sftm_app.preflight.mismatches import apart_note, listing, vocabulary_problems
from sftm_app.weights.adapter_config import PEFT_PREFIX, LoraPair
from sftm_app.weights.checkpoint import Checkpoint, index_note
from sftm_app.weights.reader import TensorReader, open_reader

GUESSED = (
    "The base has no config.json: what each tensor is was guessed from names and shapes. Look the guesses through, and "
    "set those that are wrong (in the app under What each tensor is, in a recipe by `roles`)."
)
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Preflight:
    """What the headers tell. `problems` refuse the merge; `notes` are worth knowing."""

    base: Checkpoint
    tasks: tuple[Source, ...]
    architecture: Architecture
    matches: tuple[Match, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base's, then every task's."""
        return self.base, *(task.checkpoint for task in self.tasks)

    def require(self) -> Preflight:
        """Itself, when there is no problem.

        Raises
            CompatibilityError: carrying every problem.
        """
        if self.problems:
            raise CompatibilityError(self.problems)
        return self


def _index_notes(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    """What the indices of sharded checkpoints claim wrongly; nothing that keeps a merge from being right."""
    named = {"base": base} | {task.name: task.checkpoint for task in tasks}
    return [f"{name}: {note}" for name, checkpoint in named.items() if (note := index_note(checkpoint))]


def preflight(
    base: Checkpoint, tasks: Sequence[Source], roles: RoleRules = (), architectures: ArchitectureCache | None = None
) -> Preflight:
    """Compare base and tasks by their configs and headers. roles: set by a person, as in Recipe.

    Raises
        CheckpointError: the base's architecture is not known.
    """
    if base.adapter:
        raise CheckpointError(
            f"{base.path}: is a LoRA adapter, which cannot be the base. Pick the model that it was trained on as "
            "the base and the adapter as a task."
        )
    architectures = architectures or ArchitectureCache()
    try:
        built = guess_architecture(base.tensors) if base.bare else architecture_of(base, architectures)
    except CheckpointError as error:
        raise CheckpointError(f"{base.path}: {error}") from None
    architecture, unfit = apply_rules(built, base.tensors, roles)
    problems = _check_set(base, tasks) + unfit
    notes = ([GUESSED] if base.bare else []) + apart_note("The base", architecture.apart) + _picked_twice(tasks)
    notes += _index_notes(base, tasks)
    matches, told = [], []
    for task in tasks:
        if task.checkpoint.adapter:
            # How its factors lie is a fact of the architecture; only a guess may be set right by a person.
            match, found, said = match_adapter(base, task, architecture if base.bare else built)
        else:
            match, found, said = match_full(base, task, architecture, architectures)
        matches.append(match)
        problems += found
        told += [(task.name, note) for note in said]
    notes += _together(told)
    problems += vocabulary_problems([task.name for task in tasks], [match.vocabulary for match in matches])
    problems += _turned_by_role(base, tasks, matches, architecture) + _factors_on_heads(tasks, matches)
    matches = _apart_where_some_lack_it(matches)
    copied = [name for name in base.tensors if not any(match.source(name) for match in matches)]
    if copied and tasks and not problems:
        are = "tensors are in no task and are" if len(copied) > 1 else "tensor is in no task and is"
        notes.append(f"{len(copied)} {are} copied from the base: {listing(copied)}.")
    dtypes = {_float_types(source) for source in (base, *(task.checkpoint for task in tasks))}
    if len(dtypes) > 1 or "float64" in dtypes:
        are = f"The types differ ({', '.join(sorted(dtypes))})" if len(dtypes) > 1 else "The weights are float64"
        notes.append(f"{are}; everything is computed in float32.")
    return Preflight(base, tuple(tasks), architecture, tuple(matches), tuple(problems), tuple(notes))


def _together(told: Sequence[tuple[str, str]]) -> list[str]:
    """Notes on tasks, each with the task's name in front; those that say the same of several as one line."""
    names: dict[str, list[str]] = {}
    for name, note in told:
        names.setdefault(note.removeprefix(f"{name}: "), []).append(name)
    return [f"{', '.join(of)}{' (each)' if len(of) > 1 else ''}: {said}" for said, of in names.items()]


def _turned_by_role(
    base: Checkpoint, tasks: Sequence[Source], matches: Sequence[Match], architecture: Architecture
) -> list[str]:
    """Problems where a role set by a person lays a weight the other way than an adapter's factors do."""
    problems = []
    for task, match in zip(tasks, matches, strict=True):
        for name, pair in match.pairs.items():
            parts = assign(base.tensors[name], architecture.owners.get(name)).parts
            if parts and parts[0].transposed != pair.transposed:
                problems.append(
                    f"{task.name}: changes {name!r} as stored {'in x out' if pair.transposed else 'out x in'}; "
                    f"the role that was set for it says otherwise. Take it out of `roles`, or set "
                    f"{'matrix_transposed' if pair.transposed else 'matrix'}."
                )
    return problems


def _factors_on_heads(tasks: Sequence[Source], matches: Sequence[Match]) -> list[str]:
    """Problems where an adapter changes by factors what another task keeps as a head of its own."""
    paired = list(zip(tasks, matches, strict=True))
    heads = {head.removeprefix(PEFT_PREFIX): task.name for task, match in paired for head in match.heads}
    return [
        f"{task.name}: changes {name!r} by LoRA, which is a head of {heads[name]}'s own. A head is kept apart for all "
        "tasks or for none: leave one of the two out, or train the adapter with this module in `modules_to_save`."
        for task, match in paired
        for name in match.pairs
        if name in heads
    ]


def _float_types(checkpoint: Checkpoint) -> str:
    found = {str(info.dtype).removeprefix("torch.") for info in checkpoint.tensors.values() if info.is_float}
    return " and ".join(sorted(found))


def _apart_where_some_lack_it(matches: list[Match]) -> list[Match]:
    """A tensor that is one task's head is kept apart for all of them: heads of some tasks only are never mixed."""
    head_names = {head.removeprefix(PEFT_PREFIX) for match in matches for head in match.heads}

    def apart(theirs: str) -> bool:
        return theirs.removeprefix(PEFT_PREFIX) in head_names

    return [
        replace(
            match,
            names={ours: theirs for ours, theirs in match.names.items() if not apart(theirs)},
            heads=match.heads + tuple(theirs for theirs in match.names.values() if apart(theirs)),
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


def refuse_unchanged(found: Preflight) -> None:
    """Refuse a task whose merged tensors all equal the base's. Reads tensors until the first difference.

    Raises
        InputError: naming every task that equals the base.
    """
    with open_reader(found.base) as base:
        unchanged = []
        for task, match in zip(found.tasks, found.matches, strict=True):
            with open_reader(task.checkpoint) as read:
                changed = any(_differs(base, read, ours, theirs) for ours, theirs in match.names.items())
                if not changed and not any(_acts(read, pair) for pair in match.pairs.values()):
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


def _acts(read: TensorReader, pair: LoraPair) -> bool:
    """Whether a LoRA pair changes anything: training starts with B at zero, which is the base itself."""
    return bool(pair.scaling and read(pair.b).float().any() and read(pair.a).float().any())
