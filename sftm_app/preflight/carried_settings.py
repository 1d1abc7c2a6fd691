"""Chat template, special tokens and settings of generation: which of the tasks' settings the merged model gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftm_app.preflight.vocabularies import BASE, TASK
from sftm_app.weights.text_settings import TextSettings, describe

MAX_NAMED = 5
_TEMPLATE = ("template", "chat template")


@dataclass(frozen=True)
class CarriedSettings:
    """The settings of the merged model.

    Attributes:
        entries: table and name of a setting (see TextSettings.entries) -> its value.
        differ: whether the models' settings differ, so that a choice makes a difference.
        notes: sentences.
    """

    entries: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    differ: bool = False
    notes: tuple[str, ...] = ()


def carry(base: TextSettings, tasks: Mapping[str, TextSettings], choice: str | None = None) -> CarriedSettings:
    """Decide the settings of the merged model.

    Args:
        base: the base's.
        tasks: task's name -> its settings.
        choice: "base" keeps the base's, "task NAME" takes one task's; otherwise the base's hold, except where every
            task that has such settings has another value, and all of them the same.
    """
    ours = base.entries()
    if choice and choice.startswith(TASK):
        name = choice.removeprefix(TASK)
        theirs = tasks[name].entries()
        kept = {key: value for key, value in ours.items() if not _speaks(tasks[name], key[0])}
        changed = {key: value for key, value in theirs.items() if ours.get(key) != value}
        notes = [f"`tokenizer: {choice}`: the merged model gets {_listed(changed, ours)}."] if changed else []
        return CarriedSettings({**kept, **theirs}, True, tuple(notes))
    shared, split = _shared(ours, tasks)
    if not shared and not split:
        return CarriedSettings(ours)
    if choice == BASE:
        return CarriedSettings(
            ours, True, (f"`tokenizer: {BASE}`: the tasks' {_words([*shared, *split])} are left out.",)
        )
    notes = []
    if shared:
        every = "Every task has" if len(tasks) > 1 else f"{next(iter(tasks))} has"
        notes.append(
            f"{every} settings that the base lacks, and the merged model gets them: {_listed(shared, ours)}. "
            "`tokenizer: base` keeps the base's."
        )
    if split:
        notes.append(
            f"The tasks disagree about the {_words(split)}, so the merged model has the base's. "
            f"`tokenizer: {TASK}NAME` takes one task's."
        )
    return CarriedSettings({**ours, **shared}, True, tuple(notes))


def _speaks(settings: TextSettings, table: str) -> bool:
    """Whether a model has any settings of this table, so that a missing one is meant."""
    return settings.has_tokenizer if table in ("template", "special") else bool(getattr(settings, table))


def _shared(
    ours: Mapping[tuple[str, str], Any], tasks: Mapping[str, TextSettings]
) -> tuple[dict[tuple[str, str], Any], dict[tuple[str, str], Any]]:
    """Settings other than the base's that all tasks share, and those about which they disagree."""
    entries = {name: settings.entries() for name, settings in tasks.items()}
    shared: dict[tuple[str, str], Any] = {}
    split: dict[tuple[str, str], Any] = {}
    for key in dict.fromkeys(key for found in entries.values() for key in found):
        told = [found.get(key) for name, found in entries.items() if _speaks(tasks[name], key[0])]
        if all(value == told[0] for value in told):
            if told[0] is not None and told[0] != ours.get(key):
                shared[key] = told[0]
        else:
            split[key] = None
    return shared, split


def _listed(entries: Mapping[tuple[str, str], Any], ours: Mapping[tuple[str, str], Any]) -> str:
    """The first settings with their values, and how many more there are."""
    words = []
    for (table, name), value in list(entries.items())[:MAX_NAMED]:
        if table == "template":
            words.append(name)
        else:
            before = ours.get((table, name))
            words.append(
                f"{_word(table, name)} {describe(value)} (base: {'none' if before is None else describe(before)})"
            )
    more = f" and {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return ", ".join(words) + more


def _words(keys: Sequence[tuple[str, str]] | Mapping[tuple[str, str], Any]) -> str:
    named = [_word(*key) for key in keys]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return ", ".join(named[:MAX_NAMED]) + more


def _word(table: str, name: str) -> str:
    where = {"generation": " of generation_config.json", "ids": " of config.json"}.get(table, "")
    return f"{name}{where}"
