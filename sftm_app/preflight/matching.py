"""How one task lines up with the base, from headers alone, with every mismatch in a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.guess import by_file_names, guess_task, may_be_absent
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.ties import architecture_of
from sftm_app.errors import CheckpointError
from sftm_app.preflight.alignment import Alignment, align, part_of
from sftm_app.preflight.mismatches import (
    Reshaped,
    apart_note,
    listing,
    name_problems,
    reshaped_problems,
    untied_problem,
)
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint

# Classes of models whose outputs have names.
_CLASSIFIES = re.compile("Classification|Detection|Segmentation")
# What a config says about its checkpoint rather than about the model.
_SAVING_KEYS = ("num_labels", "use_cache", "torchscript", "return_dict", "output_attentions", "output_hidden_states")


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
    pairs: name in the base -> the LoRA pair that changes it, for an adapter.
    vocabulary: the number of entries in the base's vocabulary and in the task's, when they differ.
    """

    names: dict[str, str]
    heads: tuple[str, ...]
    pairs: dict[str, LoraPair] = field(default_factory=dict)
    vocabulary: tuple[int, int] | None = None

    def source(self, name: str) -> str | LoraPair | None:
        """What the task holds for a tensor of the base: a whole tensor, a LoRA pair, or nothing."""
        return self.names.get(name) or self.pairs.get(name)


def match_full(
    base: Checkpoint, task: Source, architecture: Architecture, architectures: ArchitectureCache
) -> tuple[Match, list[str], list[str]]:
    """Line up a full checkpoint with the base: the match, problems that refuse the merge, notes worth knowing."""
    checkpoint = task.checkpoint
    bare = base.bare or checkpoint.bare
    try:
        if checkpoint.bare:
            known = guess_task(checkpoint.tensors, base.tensors, architecture)
        else:
            known = architecture_of(checkpoint, architectures)
            known = by_file_names(known) if base.bare else known
    except CheckpointError as error:
        return Match({}, ()), [f"{task.name}: {error}"], []
    related = part_of(checkpoint, architecture) is not None or part_of(base, known) is not None
    if checkpoint.model_type != base.model_type and not bare and not related:
        problem = (
            f"{task.name}: is a {checkpoint.model_type!r} model, the base is a {base.model_type!r} model. "
            "Only checkpoints fine-tuned from the base can be merged into it."
        )
        return Match({}, ()), [problem], []

    found = align(base, architecture, checkpoint, known)
    other_labels = _class_names(checkpoint) != _class_names(base) and not bare
    names: dict[str, str] = {}
    reshaped, retyped = [], []
    for name, theirs in found.names.items():
        info, other = base.tensors[name], checkpoint.tensors[theirs]
        if other_labels and not _in_backbone(theirs, known):
            continue  # a classifier of the same size for other classes is another head
        if other.is_float != info.is_float:
            retyped.append(name)
        elif other.shape == info.shape:
            names[name] = theirs
        elif _in_backbone(theirs, known) or _is_vocabulary(name, architecture):
            reshaped.append(Reshaped(name, info.shape, other.shape))
    untied = _untied(base, architecture, task, known, found)
    missing, extra, heads = _leftovers(base, architecture, task, known, found, names, architectures)
    missing = [name for name in missing if name not in untied]
    vocabulary, reshaped = _vocabulary(reshaped, architecture)

    problems = reshaped_problems(task.name, reshaped)
    problems += [untied_problem(task.name, name, in_base) for name, in_base in untied.items()]
    problems += name_problems(task.name, retyped, missing, [name for name in extra if name not in untied])
    notes = apart_note(task.name, known.apart) + _other_settings(base, task)
    notes += _parts_notes(base, task, architecture, found)
    kept = tuple(name for name in heads if name not in untied)
    if kept:
        notes.append(f"{task.name}: {listing(list(kept))} belong to its own head, which is kept apart, not merged.")
    return Match(names, kept, vocabulary=vocabulary), problems, notes


def _class_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the outputs of a classifier stand for; nothing for other models, and for names that are only numbers."""
    if not _CLASSIFIES.search(checkpoint.architecture):
        return ()
    names = [label for _, label in sorted(checkpoint.id2label.items())]
    return () if names == [f"LABEL_{i}" for i in range(len(names))] else tuple(names)


def _leftovers(
    base: Checkpoint,
    ours: Architecture,
    task: Source,
    known: Architecture,
    found: Alignment,
    names: dict[str, str],
    architectures: ArchitectureCache,
) -> tuple[list[str], list[str], tuple[str, ...]]:
    """What one side lacks: tensors of the base that the task ought to hold, tensors of the task that the base ought
    to hold, and the task's heads."""
    checkpoint = task.checkpoint
    absent = [name for name in base.tensors if name not in found.names]
    missing = _ought_to_hold(absent, base, ours, checkpoint, architectures)
    accounted = set(names.values()) | found.twins | found.outside
    rest = [name for name in checkpoint.tensors if name not in accounted and not _is_buffer(name, known)]
    heads = tuple(name for name in rest if not _in_backbone(name, known))
    lined_up = set(found.names.values())
    return missing, [name for name in rest if name not in heads and name not in lined_up], heads


def _ought_to_hold(
    absent: list[str], base: Checkpoint, ours: Architecture, task: Checkpoint, architectures: ArchitectureCache
) -> list[str]:
    """Those tensors of the base that a model of the task's class has when it is as large as the base.

    A classifier without the base's pooler lacks nothing; a task with fewer layers than the base does.
    """
    if base.bare or task.bare:
        return [name for name in absent if not may_be_absent(name)]
    candidates = {name: ours.owners[name] for name in absent if name in ours.owners and not _is_buffer(name, ours)}
    if not candidates:
        return []
    within = part_of(task, ours) if task.model_type != base.model_type else ""
    if within is None:  # the base is a part of the task, which therefore has all of its backbone
        return [name for name, owner in candidates.items() if owner.in_backbone]
    settings = base.config if task.model_type == base.model_type else _settings_of_part(base, task)
    as_large = architectures.read(settings | {"architectures": task.config.get("architectures")}).keys
    return [
        name
        for name, owner in candidates.items()
        if owner.key.startswith(within) and owner.key.removeprefix(within).partition(" ")[0] in as_large
    ]


def _settings_of_part(base: Checkpoint, task: Checkpoint) -> dict[str, Any]:
    """The base's settings for the part of it that the task is; the task's own where its config does not say."""
    parts = (value for value in base.config.values() if isinstance(value, dict))
    found = next((part for part in parts if part.get("model_type") == task.model_type), {})
    return task.config | found


def _untied(
    base: Checkpoint, ours: Architecture, task: Source, known: Architecture, found: Alignment
) -> dict[str, bool]:
    """Names that one side ties to another parameter while the other side keeps them apart -> whether the base ties."""
    theirs = {n: o.key for n, o in known.owners.items() if n not in found.names.values() and n not in found.outside}
    tied_in_base = {name: True for name, key in theirs.items() if key in ours.ties}
    absent = {name: ours.owners[name].key for name in base.tensors if name not in found.names and name in ours.owners}
    return tied_in_base | {name: False for name, key in absent.items() if key in known.ties}


def _vocabulary(reshaped: list[Reshaped], architecture: Architecture) -> tuple[tuple[int, int] | None, list[Reshaped]]:
    """The two sizes of vocabulary, when it is the vocabulary that differs, and the tensors that it does not explain."""
    tables = [tensor for tensor in reshaped if _is_vocabulary(tensor.name, architecture)]
    table = next((tensor for tensor in tables if tensor.ours[1:] == tensor.theirs[1:]), None)
    if table is None:
        return None, reshaped
    sizes = (table.ours[0], table.theirs[0])
    rest = [t for t in reshaped if (t.ours[:1] + t.theirs[:1], t.ours[1:]) != (sizes, t.theirs[1:])]
    return sizes, rest


def _is_vocabulary(name: str, architecture: Architecture) -> bool:
    owner = architecture.owners.get(name)
    return owner is not None and architecture.vocabulary is not None and owner.key == architecture.vocabulary


def _is_buffer(name: str, architecture: Architecture) -> bool:
    owner = architecture.owners.get(name)
    return owner is not None and owner.kind == "buffer"


def _parts_notes(base: Checkpoint, task: Source, ours: Architecture, found: Alignment) -> list[str]:
    """Notes when one side is a part of the other."""
    if task.checkpoint.model_type == base.model_type:
        return []
    if found.outside:
        outside = listing(sorted(found.outside))
        return [
            f"{task.name}: {len(found.outside)} of its tensors are outside the base's part and left out: {outside}."
        ]
    if part_of(task.checkpoint, ours) is None:
        return []
    return [f"{task.name}: is a {task.checkpoint.model_type!r}, a part of the base; the rest is as in the base."]


def _other_settings(base: Checkpoint, task: Source) -> list[str]:
    """A note when settings that leave no trace in the shapes differ, such as the number of attention heads."""
    theirs = task.checkpoint.config
    ours = base.config if task.checkpoint.model_type == base.model_type else _settings_of_part(base, task.checkpoint)
    other = [
        f"{key} ({theirs[key]!r}, in the base {ours[key]!r})"
        for key in ours
        if key in theirs and key not in _SAVING_KEYS and isinstance(ours[key], int | float) and ours[key] != theirs[key]
    ]
    return [f"{task.name}: its config differs in {listing(other)}; the merged model has the base's."] if other else []


def _in_backbone(name: str, architecture: Architecture) -> bool:
    owner = architecture.owners.get(name)
    return owner is None or owner.in_backbone
