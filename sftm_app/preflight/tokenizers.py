"""Compares the tokenizers of base and tasks, and puts the rows of their tables in one order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.vocabulary_tables import vocabulary_axes, vocabulary_size
from sftm_app.errors import CheckpointError
from sftm_app.preflight.carried_settings import CarriedSettings, carry
from sftm_app.preflight.matching import Source
from sftm_app.preflight.row_alignment import Tables, align_rows, table_size, tables_of_task
from sftm_app.preflight.vocabularies import TASK, Comparison, Member, compare
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.text_settings import read_settings
from sftm_app.weights.vocabulary import Vocabulary, read_vocabulary

THE_BASE = "the base"


@dataclass(frozen=True)
class TokenizerFindings:
    """What the tokenizers say.

    Attributes:
        source: the checkpoint whose tokenizer files the output gets; None where none has any.
        additions: tokens that these files lack -> their rows and their entries in tokenizer.json.
        settings: chat template, special tokens and settings of generation; empty where they are the base's own.
        taken: for each task the tokens whose rows it gives, since the base lacks them.
        choosable: whether it makes a difference whose tokenizer is chosen.
        problems, notes: sentences.
    """

    source: Checkpoint | None = None
    additions: Mapping[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    settings: CarriedSettings = CarriedSettings()
    taken: tuple[tuple[str, ...], ...] = ()
    choosable: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def align_tokenizers(
    base: Checkpoint,
    tasks: Sequence[Source],
    architecture: Architecture,
    choice: str | None,
    architectures: ArchitectureCache,
) -> tuple[Checkpoint, tuple[Source, ...], TokenizerFindings]:
    """Base and tasks with their tables in the order of the merged vocabulary, and what the tokenizers say.

    Args:
        base, tasks: as opened.
        architecture: the base's.
        choice: whose tokenizer the merged model has; see `vocabularies.compare`.
        architectures: asked for the models' tables.
    """
    unchanged = base, tuple(tasks)
    if architecture.vocabulary is None and not architecture.guessed:
        return *unchanged, TokenizerFindings()  # a model that reads no tokens
    try:
        told = _read(base, tasks)
        theirs = {task.name: read_settings(task.checkpoint.folder, task.checkpoint.config) for task in tasks}
        own = read_settings(base.folder, base.config)
        settings = carry(own, theirs, choice)
        everyone = (base, *(task.checkpoint for task in tasks))
        first = next((one for one in everyone if told[id(one)]), None)
        if choice and choice.startswith(TASK):
            chosen = next(task.checkpoint for task in tasks if task.name == choice.removeprefix(TASK))
            first = chosen if told[id(chosen)] else first
        findings = TokenizerFindings(first, settings=settings, choosable=settings.differ, notes=settings.notes)
        if architecture.guessed or architecture.vocabulary is None or not tasks:
            return *unchanged, findings
        found, axes, tables = _compare(base, tasks, architecture, choice, architectures, told)
        merged = found.merged
        moved_base, moved = align_rows(base, tasks, axes, tables, merged) if merged else (base, [])
    except CheckpointError as error:
        return *unchanged, TokenizerFindings(problems=tuple(str(error).split("\n")))
    if merged is not None:  # the same number means another token in models whose rows were moved
        theirs = {t.name: theirs[t.name].with_rows(rows) for t, rows in zip(tasks, merged.rows[1:], strict=True)}
        settings = carry(own.with_rows(merged.rows[0]), theirs, choice)
    notes = (*_unread_notes(base, tasks, told), *_splitting_notes(base, tasks, told), *settings.notes)
    choosable = settings.differ or found.differ
    findings = replace(findings, settings=settings, choosable=choosable, notes=notes, problems=found.problems)
    if merged is None:
        return *unchanged, findings
    sources = tuple(replace(task, checkpoint=one) for task, one in zip(tasks, moved, strict=True))
    source = everyone[merged.files] if told[id(everyone[merged.files])] else first
    findings = replace(
        findings, source=source, additions=merged.additions, taken=merged.taken, notes=(*merged.notes, *notes)
    )
    return moved_base, sources, findings


def _read(base: Checkpoint, tasks: Sequence[Source]) -> dict[int, Vocabulary | None]:
    """The vocabularies by the identity of the checkpoint."""
    ours = None if base.path.is_file() else read_vocabulary(base.folder)
    told: dict[int, Vocabulary | None] = {id(base): ours}
    for task in tasks:
        folder = task.checkpoint.folder
        told[id(task.checkpoint)] = None if folder.is_file() else read_vocabulary(folder, ours)
    return told


def _compare(
    base: Checkpoint,
    tasks: Sequence[Source],
    architecture: Architecture,
    choice: str | None,
    architectures: ArchitectureCache,
    told: Mapping[int, Vocabulary | None],
) -> tuple[Comparison, dict[str, int], list[Tables]]:
    """Compare the tokens. The models' tables are asked for only where something differs."""
    size = vocabulary_size(base.config) or 0
    known = [vocabulary.rows for vocabulary in told.values() if vocabulary]
    sizes = {vocabulary_size(t.checkpoint.config) for t in tasks if not t.checkpoint.adapter} - {None, size}
    adapters = any(_has_other_table(t.checkpoint, size) for t in tasks if t.checkpoint.adapter)
    if all(rows == known[0] for rows in known) and not sizes and not adapters:
        return Comparison(), {}, []
    axes = {n: a for n, a in vocabulary_axes(base, architecture, architectures).items() if base.tensors[n].is_float}
    if not axes:
        return Comparison(), {}, []
    tables = [tables_of_task(base, architecture, axes, task.checkpoint, architectures) for task in tasks]
    members = [Member(THE_BASE, _known(told[id(base)]), size)]
    for task, own in zip(tasks, tables, strict=True):
        found = table_size(task.checkpoint, own, axes)
        members.append(Member(task.name, _known(told[id(task.checkpoint)]), size if found is None else found))
    return compare(members, choice), axes, tables


def _has_other_table(adapter: Checkpoint, size: int) -> bool:
    """Whether an adapter may hold a table of another number of tokens."""
    return any(
        size not in info.shape and ("embed" in name or "head" in name or "wte" in name or "shared" in name)
        for name, info in adapter.tensors.items()
        if info.is_float and len(info.shape) == 2
    )


def _known(vocabulary: Vocabulary | None) -> Vocabulary | None:
    return vocabulary if vocabulary and vocabulary.rows else None


def _unread_notes(base: Checkpoint, tasks: Sequence[Source], told: Mapping[int, Vocabulary | None]) -> list[str]:
    """Notes on tokenizers of formats whose tokens cannot be compared, where the files differ."""
    ours = told[id(base)]
    return [
        f"{task.name}: its tokenizer ({theirs.file}) differs from the base's, and its tokens cannot be read from this "
        "format. Make sure that rows of one number mean the same token, or save both tokenizers as tokenizer.json."
        for task in tasks
        if (theirs := told[id(task.checkpoint)]) and ours and theirs.digest != ours.digest
        if not (theirs.rows and ours.rows)
    ]


def _splitting_notes(base: Checkpoint, tasks: Sequence[Source], told: Mapping[int, Vocabulary | None]) -> list[str]:
    """A note where a task's tokenizer splits text in another way than the base's."""
    ours = told[id(base)]
    others = [
        task.name
        for task in tasks
        if (theirs := told[id(task.checkpoint)]) and ours and theirs.splitting and ours.splitting
        if theirs.splitting != ours.splitting
    ]
    if not others:
        return []
    return [
        f"{', '.join(others)}: text is split into tokens in another way than by the base's tokenizer (normalizer, "
        "splitting or merges in tokenizer.json differ)."
    ]
