"""Which tensor of a task is which tensor of the base, whatever their names in the files.

Both sides' names are translated to the keys of their architectures (see Owner). One side may be a part of the other, as
the vision tower is a part of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Alignment:
    """How the tensors of a task correspond to those of the base.

    Attributes:
        names: name in the base -> name in the task's files, whatever the shapes.
        outside: names in the task's files that belong to parts of its architecture which the base's lacks.
        copies: names in the task's files that hold a tied tensor once more.
    """

    names: dict[str, str]
    outside: frozenset[str]
    copies: frozenset[str]


def part_of(inner: Checkpoint, outer: Architecture) -> str | None:
    """The prefix of the keys of `outer` that `inner` is a part of; None if it is not a part."""
    return outer.submodels.get(inner.model_type)


def align(base: Checkpoint, ours: Architecture, task: Checkpoint, theirs: Architecture) -> Alignment:
    """Find each tensor of the base in the task. `ours` and `theirs` are their architectures."""
    prefix = ours.backbone_prefix or theirs.backbone_prefix
    translate = _translator(base, ours, task, theirs)
    by_key: dict[str, list[str]] = {}
    for name in task.tensors:
        by_key.setdefault(translate(theirs.key_of(name, prefix), theirs.in_backbone(name)), []).append(name)
    names = {}
    for name in base.tensors:
        same = by_key.get(ours.key_of(name, prefix))
        if same:
            # Several hold the same tied tensor: take the one with the same name, if any.
            plain = name.removeprefix(prefix)
            names[name] = next((other for other in same if other.removeprefix(prefix) == plain), same[0])
    matched = set(names.values())
    copies = {name for same in by_key.values() if matched & set(same) for name in same} - matched
    within = part_of(base, theirs) if base.model_type != task.model_type else None
    outside = {
        name
        for name in set(task.tensors) - matched
        if within is not None and not theirs.key_of(name, prefix).startswith(within)
    }
    return Alignment(names, frozenset(outside), frozenset(copies))


def _translator(
    base: Checkpoint, ours: Architecture, task: Checkpoint, theirs: Architecture
) -> Callable[[str, bool], str]:
    """A function from a key of the task, and whether it is in the task's backbone, to the key in the base."""
    if base.model_type != task.model_type:
        within_base, within_task = part_of(task, ours), part_of(base, theirs)
        if within_base is not None:
            return lambda key, in_backbone: within_base + key if in_backbone else key
        if within_task is not None:
            return lambda key, in_backbone: key.removeprefix(within_task)
    return lambda key, in_backbone: key
