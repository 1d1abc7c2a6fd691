"""How a full checkpoint matches the base, from the headers alone, with every mismatch in a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.guess import by_file_names, may_be_absent
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.opening import task_architecture
from sftm_app.architecture.settings import flat_settings, settings_of_part
from sftm_app.architecture.ties import are_equal
from sftm_app.errors import CheckpointError
from sftm_app.preflight.alignment import Alignment, align, part_of
from sftm_app.preflight.mismatches import (
    Reshaped,
    false_tie_notes,
    listing,
    name_problems,
    reshaped_problems,
    tie_problem,
)
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint

# Classes of models whose outputs have names.
_CLASSIFIES = re.compile("Classification|Detection|Segmentation")
# More differences in the configs than this are counted.
_MAX_SETTINGS = 40


@dataclass(frozen=True)
class Source:
    """A task checkpoint, with its name and its weight in the merge (a factor on its task matrices; not 0)."""

    name: str
    checkpoint: Checkpoint
    weight: float = 1.0


@dataclass(frozen=True)
class Match:
    """How one task matches the base.

    Attributes:
        names: name in the base -> name in the task's files, for each tensor that both hold in the same shape.
        heads: names in the task's files of its own head: the base lacks them or holds them in another shape.
        pairs: name in the base -> the LoRA pair that changes it.
        vocabulary: the sizes of the base's and of the task's vocabulary, if they differ.
        problems: sentences, without the task's name, that refuse the merge.
        notes: sentences, without the task's name, that are worth knowing.
        left: names in the task's files of tensors that are not merged -> why, apart from heads.
    """

    names: dict[str, str]
    heads: tuple[str, ...]
    pairs: dict[str, LoraPair] = field(default_factory=dict)
    vocabulary: tuple[int, int] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str | LoraPair | None:
        """What the task holds for a tensor of the base: the name of a tensor, a LoRA pair, or nothing."""
        return self.names.get(name) or self.pairs.get(name)


def match_full(base: Checkpoint, ours: Architecture, task: Checkpoint, architectures: ArchitectureCache) -> Match:
    """Match a full checkpoint with the base, whose architecture is `ours`."""
    try:
        theirs = task_architecture(task, base, ours, architectures)
        if ours.guessed and not theirs.guessed:
            theirs = by_file_names(theirs)
    except CheckpointError as error:
        return Match({}, (), problems=(str(error),))
    related = part_of(task, ours) is not None or part_of(base, theirs) is not None
    if task.model_type != base.model_type and not (ours.guessed or theirs.guessed or related):
        problem = (
            f"is a {task.model_type!r} model, the base is a {base.model_type!r} model. "
            "Only checkpoints fine-tuned from the base can be merged into it."
        )
        return Match({}, (), problems=(problem,))
    return _Sides(base, ours, task, theirs, align(base, ours, task, theirs)).match(architectures)


@dataclass(frozen=True)
class _Sides:
    """The base and a task, with their architectures and the alignment of their tensors."""

    base: Checkpoint
    ours: Architecture
    task: Checkpoint
    theirs: Architecture
    found: Alignment

    @property
    def guessed(self) -> bool:
        """Whether a side has no config that says what its tensors are."""
        return bool(self.ours.guessed or self.theirs.guessed)

    def match(self, architectures: ArchitectureCache) -> Match:
        other_labels = _class_names(self.task) != _class_names(self.base) and not self.guessed
        names: dict[str, str] = {}
        reshaped, retyped = [], []
        for name, theirs in self.found.names.items():
            info, other = self.base.tensors[name], self.task.tensors[theirs]
            if other_labels and not self.theirs.in_backbone(theirs):
                continue  # a classifier of the same size for other classes is another head
            if other.is_float != info.is_float:
                retyped.append(name)
            elif other.shape == info.shape:
                names[name] = theirs
            elif self.theirs.in_backbone(theirs) or self.ours.is_vocabulary(name):
                reshaped.append(Reshaped(name, info.shape, other.shape))
        tied = self._tied_on_one_side()
        copies = {name for name, in_base in tied.items() if in_base and self._is_copy(self.task, name, in_base)}
        shared = [name for name, in_base in tied.items() if not in_base and self._is_copy(self.base, name, in_base)]
        names |= {name: self._table_of_task(name, False) for name in shared}
        tied = {name: in_base for name, in_base in tied.items() if name not in copies and name not in shared}
        missing = [name for name in self._missing(architectures) if name not in tied and name not in shared]
        accounted = set(names.values()) | self.found.copies | self.found.outside | set(tied) | copies
        rest = [n for n in self.task.tensors if n not in accounted and not self.theirs.is_buffer(n)]
        heads = tuple(name for name in rest if not self.theirs.in_backbone(name))
        aligned = set(self.found.names.values())
        unused = [name for name in rest if name in self.theirs.unused and name not in heads]
        unexpected = [name for name in rest if name not in heads and name not in aligned and name not in unused]
        vocabulary, reshaped = _split_vocabulary(reshaped, self.ours)
        problems = [
            *reshaped_problems(reshaped),
            *(tie_problem(name, in_base) for name, in_base in tied.items()),
            *name_problems(retyped, missing, unexpected),
        ]
        notes = [*false_tie_notes(self.theirs.false_ties), *self._other_settings(), *self._part_notes()]
        if unused:
            notes.append(
                f"holds {len(unused)} tensors that its class does not load and the base lacks: {listing(unused)}. They "
                "are left out."
            )
        if heads:
            notes.append(f"{listing(heads)} belong to its own head, which is kept separately, not merged.")
        left = {name: "the model computes them" for name in self.task.tensors if self.theirs.is_buffer(name)}
        left |= dict.fromkeys(self.found.copies | copies, "copies of tied tensors")
        left |= dict.fromkeys(self.found.outside, "outside the base's part")
        left |= dict.fromkeys(unused, "its class does not load them and the base lacks them")
        return Match(names, heads, {}, vocabulary, tuple(problems), tuple(notes), left)

    def _missing(self, architectures: ArchitectureCache) -> list[str]:
        """Tensors of the base that the task lacks, although a model of its class and of the base's size has them.

        A classifier without the base's pooler lacks nothing; a task with fewer layers than the base does.
        """
        absent = [name for name in self.base.tensors if name not in self.found.names]
        if self.guessed:
            return [name for name in absent if not may_be_absent(name)]
        owners = {n: self.ours.owners[n] for n in absent if n in self.ours.owners and not self.ours.is_buffer(n)}
        if not owners:
            return []
        within = part_of(self.task, self.ours) if self.task.model_type != self.base.model_type else ""
        if within is None:  # the base is a part of the task, which therefore has the whole backbone
            return [name for name, owner in owners.items() if owner.in_backbone]
        settings = self._base_settings() | {"architectures": self.task.config.get("architectures")}
        keys = architectures.read(settings).keys
        return [
            name
            for name, owner in owners.items()
            if owner.key.startswith(within) and owner.key.removeprefix(within).partition(" ")[0] in keys
        ]

    def _base_settings(self) -> dict[str, Any]:
        """The base's settings for a model of the task's type; where the base has none, the task's own."""
        if self.task.model_type == self.base.model_type:
            return self.base.config
        parts = (value for value in self.base.config.values() if isinstance(value, dict))
        return self.task.config | next((p for p in parts if p.get("model_type") == self.task.model_type), {})

    def _tied_on_one_side(self) -> dict[str, bool]:
        """Names that only one side ties to another parameter -> whether the base does."""
        aligned = set(self.found.names.values()) | self.found.outside
        in_task = {name: owner.key for name, owner in self.theirs.owners.items() if name not in aligned}
        owners = self.ours.owners
        in_base = {n: owners[n].key for n in self.base.tensors if n not in self.found.names and n in owners}
        return {name: True for name, key in in_task.items() if key in self.ours.ties} | {
            name: False for name, key in in_base.items() if key in self.theirs.ties
        }

    def _is_copy(self, checkpoint: Checkpoint, name: str, in_base: bool) -> bool:
        """Whether a tensor that only the other side ties holds the same bytes as the table in its own files."""
        table = self._table_of_task(name, True) if in_base else self._table_of_base(self.ours.owners[name].key, False)
        return table in checkpoint.tensors and are_equal(checkpoint, name, table)

    def _table_of_base(self, key: str, in_base: bool) -> str:
        """The base's name of the tensor to which a side ties a parameter; "" if it has none."""
        table = (self.ours if in_base else self.theirs).ties[key]
        return next((n for n in self.found.names if n in self.ours.owners and self.ours.owners[n].key == table), "")

    def _table_of_task(self, name: str, in_base: bool) -> str:
        key = (self.theirs if in_base else self.ours).owners[name].key
        return self.found.names.get(self._table_of_base(key, in_base), "")

    def _part_notes(self) -> list[str]:
        """A note if one side is a part of the other."""
        if self.task.model_type == self.base.model_type:
            return []
        if outside := sorted(self.found.outside):
            return [f"{len(outside)} of its tensors are outside the base's part and left out: {listing(outside)}."]
        if part_of(self.task, self.ours) is None:
            return []
        return [f"is a {self.task.model_type!r}, a part of the base; the rest is as in the base."]

    def _other_settings(self) -> list[str]:
        """A note on every setting that changes what the model computes and differs from the base's."""
        if self.base.bare or self.task.bare:
            return []
        ours, theirs = self.ours.settings, self.theirs.settings
        if not ours or not theirs:  # of a model that transformers does not know
            ours, theirs = flat_settings(self.base.config), flat_settings(self.task.config)
        if self.task.model_type != self.base.model_type:
            part = settings_of_part(ours, self.task.model_type)
            whole = settings_of_part(theirs, self.base.model_type)
            ours, theirs = (part, theirs) if part is not None else (ours, whole or ours)
        other = [
            f"{key} ({theirs.get(key, 'not set')}, in the base {ours.get(key, 'not set')})"
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key)
        ]
        more = f" and {len(other) - _MAX_SETTINGS} more" if len(other) > _MAX_SETTINGS else ""
        listed = ", ".join(other[:_MAX_SETTINGS]) + more
        return [f"its config differs in {listed}; the merged model has the base's."] if other else []


def _class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the outputs of a classifier stand for; empty for other models and for names that are only numbers."""
    if not _CLASSIFIES.search(checkpoint.architecture):
        return ()
    names = [label for _, label in sorted(checkpoint.id2label.items())]
    return () if names == [f"LABEL_{i}" for i in range(len(names))] else tuple(names)


def _split_vocabulary(
    reshaped: list[Reshaped], architecture: Architecture
) -> tuple[tuple[int, int] | None, list[Reshaped]]:
    """The sizes of both vocabularies, if they differ, and the tensors whose shape that does not explain."""
    tables = [tensor for tensor in reshaped if architecture.is_vocabulary(tensor.name)]
    table = next((tensor for tensor in tables if tensor.ours[1:] == tensor.theirs[1:]), None)
    if table is None:
        return None, reshaped
    sizes = (table.ours[0], table.theirs[0])
    rest = [t for t in reshaped if (t.ours[:1] + t.theirs[:1], t.ours[1:]) != (sizes, t.theirs[1:])]
    return sizes, rest
