"""Checks whether base and tasks fit, and reports every mismatch at once, from the headers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.opening import architecture_of
from sftm_app.architecture.role_rules import RoleRules, apply_rules
from sftm_app.architecture.roles import assign
from sftm_app.errors import CheckpointError, CompatibilityError, InputError
from sftm_app.preflight.adapter_matching import match_adapter
from sftm_app.preflight.matching import Match, Source, match_full
from sftm_app.preflight.mismatches import false_tie_notes, listing, vocabulary_problems
from sftm_app.preflight.tokenizers import TokenizerFindings, align_tokenizers
from sftm_app.weights.adapter_config import PEFT_PREFIX, LoraPair
from sftm_app.weights.checkpoint import Checkpoint, index_note
from sftm_app.weights.quantised import read_dtype
from sftm_app.weights.reader import TensorReader, open_reader

CORRECT = "Check the guesses, and correct wrong ones (in the app under What each tensor is, in a recipe by `roles`)."
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Preflight:
    """What the headers tell about a base and its tasks.

    Attributes:
        base: the base.
        tasks: the tasks, in order.
        architecture: the base's architecture, with the roles that the recipe sets.
        matches: how each task matches the base.
        problems: sentences that refuse the merge.
        notes: sentences that are worth knowing.
        tokenizers: whose tokenizer the merged model has. Where tokens differ, the tables of `base` and `tasks` have the
            rows of that tokenizer.
    """

    base: Checkpoint
    tasks: tuple[Source, ...]
    architecture: Architecture
    matches: tuple[Match, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    tokenizers: TokenizerFindings = TokenizerFindings()

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base, then the tasks."""
        return self.base, *(task.checkpoint for task in self.tasks)

    @property
    def moves_rows(self) -> bool:
        """Whether some tables are read in another order of rows than they are stored in."""
        return any(checkpoint.rows for checkpoint in self.checkpoints)

    @property
    def needs_tokenizer(self) -> bool:
        """Whether nothing is wrong but that a person has to choose a tokenizer."""
        return bool(self.problems) and self.problems == self.tokenizers.problems and self.tokenizers.choosable

    def require(self) -> Preflight:
        """Return this, if there is no problem.

        Raises:
            CompatibilityError: holds every problem.
        """
        if self.problems:
            raise CompatibilityError(self.problems)
        return self


def preflight(
    base: Checkpoint,
    tasks: Sequence[Source],
    roles: RoleRules = (),
    architectures: ArchitectureCache | None = None,
    tokenizer: str | None = None,
) -> Preflight:
    """Compare base and tasks by their configs and headers.

    Args:
        base: the base.
        tasks: the tasks.
        roles: roles that a person set, as in Recipe.
        architectures: a cache for architectures; None uses a new one in memory.
        tokenizer: whose tokenizer the merged model has, as in Recipe.

    Raises:
        CheckpointError: the base's architecture is not known, or the base is an adapter.
    """
    if base.adapter:
        raise CheckpointError(
            f"{base.path}: is a LoRA adapter, which cannot be the base. Pick the model that it was trained on as "
            "the base and the adapter as a task."
        )
    architectures = architectures or ArchitectureCache()
    try:
        built = architecture_of(base, architectures)
    except CheckpointError as error:
        raise CheckpointError(f"{base.path}: {error}") from None
    base, tasks, tokenizers = align_tokenizers(base, tasks, built, tokenizer, architectures)
    architecture, role_problems = apply_rules(built, base.tensors, roles)
    matches = [
        # An adapter's orientation is a fact of the architecture, so set roles may only correct a guess.
        match_adapter(base, task.checkpoint, architecture if built.guessed else built, architectures)
        if task.checkpoint.adapter
        else match_full(base, architecture, task.checkpoint, architectures)
        for task in tasks
    ]
    problems = [
        *_set_problems(base, tasks),
        *role_problems,
        *(f"{task.name}: {problem}" for task, match in zip(tasks, matches, strict=True) for problem in match.problems),
        *(tokenizers.problems or vocabulary_problems([t.name for t in tasks], [match.vocabulary for match in matches])),
        *_orientation_problems(base, tasks, matches, architecture),
        *_head_problems(tasks, matches),
    ]
    matches = _separate_heads(matches)
    notes = _guess_notes(base, architecture)
    notes += _quantised_notes(base, tasks)
    notes += [f"The base: {note}" for note in false_tie_notes(architecture.false_ties)]
    notes += _duplicate_notes(tasks) + _index_notes(base, tasks) + _task_notes(tasks, matches)
    if tasks and not problems:
        notes += _copied_note(base, matches)
    notes += _dtype_note(base, tasks)
    notes += tokenizers.notes
    return Preflight(base, tuple(tasks), architecture, tuple(matches), tuple(problems), tuple(notes), tokenizers)


def _guess_notes(base: Checkpoint, architecture: Architecture) -> list[str]:
    """Notes on roles that the base's config does not tell, and on what stands before its names."""
    notes = []
    if architecture.guessed and base.bare:
        notes.append(f"The base has no config.json: what each tensor is was guessed from names and shapes. {CORRECT}")
    elif architecture.guessed:
        notes.append(
            f"The base: {architecture.guessed}. What each tensor is was guessed from names and shapes, and config.json "
            f"is copied as it is. {CORRECT}"
        )
    if architecture.unknown:
        some = list(architecture.unknown)
        notes.append(
            f"The base: {len(some)} tensors have no place in {base.architecture}: {listing(some)}. What they are was "
            f"guessed from names and shapes. {CORRECT}"
        )
    if architecture.plain:
        name, plain = next(iter(architecture.plain.items()))
        notes.append(
            f"The base: {len(architecture.plain)} names hold what a wrapper put there, such as {name!r} for {plain!r}. "
            "They are read without it, and the output keeps the base's names."
        )
    return notes


def _quantised_notes(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    """A note on float8 weights with scales, which are read as numbers."""
    named = {"The base": base} | {task.name: task.checkpoint for task in tasks}
    counts = {name: len(checkpoint.scalings) for name, checkpoint in named.items() if checkpoint.scalings}
    if not counts:
        return []
    which = ", ".join(f"{name} ({count})" for name, count in counts.items())
    dtype = (
        ""
        if not base.scalings
        else (f" The output holds them as {str(read_dtype(base.config)).removeprefix('torch.')}, without scales.")
    )
    return [f"Float8 weights with scales are multiplied out: {which}.{dtype}"]


def _index_notes(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    """Notes on wrong sizes in the indices of sharded checkpoints. They do not affect the merge."""
    named = {"base": base} | {task.name: task.checkpoint for task in tasks}
    return [f"{name}: {note}" for name, checkpoint in named.items() if (note := index_note(checkpoint))]


def _task_notes(tasks: Sequence[Source], matches: Sequence[Match]) -> list[str]:
    """The notes of all matches after the tasks' names; a note that several tasks share becomes one line."""
    names: dict[str, list[str]] = {}
    for task, match in zip(tasks, matches, strict=True):
        for note in match.notes:
            names.setdefault(note, []).append(task.name)
    return [f"{', '.join(of)}{' (each)' if len(of) > 1 else ''}: {note}" for note, of in names.items()]


def _copied_note(base: Checkpoint, matches: Sequence[Match]) -> list[str]:
    copied = [name for name in base.tensors if not any(match.source(name) for match in matches)]
    are = "tensors are in no task and are" if len(copied) > 1 else "tensor is in no task and is"
    return [f"{len(copied)} {are} copied from the base: {listing(copied)}."] if copied else []


def _dtype_note(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    dtypes = set()
    for checkpoint in (base, *(task.checkpoint for task in tasks)):
        found = {str(info.dtype).removeprefix("torch.") for info in checkpoint.tensors.values() if info.is_float}
        dtypes.add(" and ".join(sorted(found)))
    if len(dtypes) == 1 and "float64" not in dtypes:
        return []
    are = f"The types differ ({', '.join(sorted(dtypes))})" if len(dtypes) > 1 else "The weights are float64"
    return [f"{are}; everything is computed in float32."]


def _orientation_problems(
    base: Checkpoint, tasks: Sequence[Source], matches: Sequence[Match], architecture: Architecture
) -> list[str]:
    """Problems where a set role says that a weight is transposed and an adapter's factors say the opposite."""
    problems = []
    for task, match in zip(tasks, matches, strict=True):
        for name, pair in match.pairs.items():
            parts = assign(base.tensors[name], architecture.owners.get(name)).parts
            if parts and parts[0].transposed != pair.transposed:
                problems.append(
                    f"{task.name}: changes {name!r} as stored {'in x out' if pair.transposed else 'out x in'}, "
                    f"but the role set for it says otherwise. Remove it from `roles`, or set "
                    f"{'matrix_transposed' if pair.transposed else 'matrix'}."
                )
    return problems


def _head_problems(tasks: Sequence[Source], matches: Sequence[Match]) -> list[str]:
    """Problems where an adapter changes by LoRA what another task keeps as its own head."""
    paired = list(zip(tasks, matches, strict=True))
    heads = {head.removeprefix(PEFT_PREFIX): task.name for task, match in paired for head in match.heads}
    return [
        f"{task.name}: changes {name!r} by LoRA, which is {heads[name]}'s own head. A head is kept separately for all "
        "tasks or for none: leave one of the two out, or train the adapter with this module in `modules_to_save`."
        for task, match in paired
        for name in match.pairs
        if name in heads
    ]


def _separate_heads(matches: Sequence[Match]) -> list[Match]:
    """Keep a tensor that is one task's head separately for all tasks: heads of some tasks only are never merged."""
    head_names = {head.removeprefix(PEFT_PREFIX) for match in matches for head in match.heads}

    def is_head(theirs: str) -> bool:
        return theirs.removeprefix(PEFT_PREFIX) in head_names

    return [
        replace(
            match,
            names={ours: theirs for ours, theirs in match.names.items() if not is_head(theirs)},
            heads=match.heads + tuple(theirs for theirs in match.names.values() if is_head(theirs)),
        )
        for match in matches
    ]


def _set_problems(base: Checkpoint, tasks: Sequence[Source]) -> list[str]:
    """Problems of the tasks' names, weights and paths."""
    problems = [] if tasks else ["No task checkpoint is chosen. Add at least one."]
    names = [task.name for task in tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"The name {name!r} is given to {names.count(name)} tasks. Give each task its own name.")
    for task in tasks:
        if not TASK_NAME.fullmatch(task.name):
            problems.append(
                f"The task name {task.name!r} cannot be a file name. Use up to 64 letters, digits, dots, dashes and "
                "underscores, and begin with a letter or digit."
            )
        if not 0 < abs(task.weight) < float("inf"):
            problems.append(f"{task.name}: the weight is {task.weight}; it should be a number other than 0.")
        if task.checkpoint.path == base.path:
            problems.append(f"{task.name}: is the base itself ({base.path}). Pick a checkpoint fine-tuned from it.")
    return problems


def _duplicate_notes(tasks: Sequence[Source]) -> list[str]:
    """A note on each checkpoint that is picked more than once, which is allowed but seldom intended."""
    paths = [task.checkpoint.path for task in tasks]
    return [
        f"{' and '.join(task.name for task in tasks if task.checkpoint.path == path)} are one and the same checkpoint "
        f"({path}), so it counts more than once."
        for path in dict.fromkeys(paths)
        if paths.count(path) > 1
    ]


def refuse_unchanged(found: Preflight) -> None:
    """Refuse a task whose merged tensors all equal the base's. Reads tensors until the first difference.

    Raises:
        InputError: names every task that equals the base.
    """
    with open_reader(found.base) as base:
        unchanged = []
        for index, (task, match) in enumerate(zip(found.tasks, found.matches, strict=True)):
            with open_reader(task.checkpoint) as read:
                # Rows that only the task has are no difference from the base's tables, and yet merged.
                changed = any(found.tokenizers.taken[index : index + 1]) or any(
                    _differs(base, read, ours, theirs, task.checkpoint.stored(theirs).info.dtype)
                    for ours, theirs in match.names.items()
                )
                if not changed and not any(_acts(read, pair) for pair in match.pairs.values()):
                    unchanged.append(task.name)
    if unchanged:
        raise InputError(
            f"{', '.join(unchanged)}: every merged tensor equals the base's, so there is nothing to merge. "
            "Pick a checkpoint that was fine-tuned, or take it out."
        )


def _differs(base: TensorReader, task: TensorReader, ours: str, theirs: str, dtype: torch.dtype) -> bool:
    """Whether a tensor differs from the base's in the task's dtype.

    If rounding to half precision explains every change, the task equals its base.
    """
    left, right = base(ours), task(theirs)
    return bool((left.to(dtype).float() != right.to(dtype).float()).any()) if dtype.is_floating_point else False


def _acts(read: TensorReader, pair: LoraPair) -> bool:
    """Whether a LoRA pair changes anything. Training starts with B = 0, which does not."""
    return any(one.scaling and read(one.b).float().any() and read(one.a).float().any() for one in pair.each)
