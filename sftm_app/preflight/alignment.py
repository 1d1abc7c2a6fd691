"""Which tensor of a task is which tensor of the base, whatever the files call them.

Both sides' names are brought to the keys of their architectures (see Owner). One side may be a part of the other, as
the vision tower alone is a part of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Alignment:
    """names: name in the base -> name in the task's files, whatever the shapes. outside: names in the task's files that
    belong to parts of its architecture which the base's does not have at all. twins: names in the task's files that
    hold a tied tensor once more.
    """

    names: dict[str, str]
    outside: frozenset[str]
    twins: frozenset[str]


def part_of(inner: Checkpoint, outer: Architecture) -> str | None:
    """What the keys of `outer` begin with where the whole of `inner` is a part of it; None when it is none."""
    return outer.submodels.get(inner.model_type)


def align(base: Checkpoint, known: Architecture, task: Checkpoint, task_known: Architecture) -> Alignment:
    """Find every tensor of the base in the task; `known` and `task_known` are their architectures."""
    prefix = known.backbone_prefix or task_known.backbone_prefix
    translate = _translator(base, known, task, task_known)
    by_key: dict[str, list[str]] = {}
    for name in task.tensors:
        by_key.setdefault(translate(_key(name, task_known, prefix), _in_backbone(name, task_known)), []).append(name)
    names = {}
    for name in base.tensors:
        same = by_key.get(_key(name, known, prefix))
        if same:
            # Several are copies of one tied tensor: the one that is called the same, if any.
            names[name] = next((other for other in same if _alike(name, other, prefix)), same[0])
    matched = set(names.values())
    twins = {name for same in by_key.values() if matched & set(same) for name in same} - matched
    within = part_of(base, task_known) if base.model_type != task.model_type else None
    outside = {
        name
        for name in set(task.tensors) - matched
        if within is not None and not _key(name, task_known, prefix).startswith(within)
    }
    return Alignment(names, frozenset(outside), frozenset(twins))


def _translator(
    base: Checkpoint, known: Architecture, task: Checkpoint, task_known: Architecture
) -> Callable[[str, bool], str]:
    """From a key of the task, and whether it is in its backbone, to the key of the base's architecture."""
    if base.model_type != task.model_type:
        within_base, within_task = part_of(task, known), part_of(base, task_known)
        if within_base is not None:
            return lambda key, in_backbone: within_base + key if in_backbone else key
        if within_task is not None:
            return lambda key, in_backbone: key.removeprefix(within_task)
    return lambda key, in_backbone: key


def _key(name: str, known: Architecture, prefix: str) -> str:
    owner = known.owners.get(name)
    return owner.key if owner and owner.key else name.removeprefix(prefix)


def _in_backbone(name: str, known: Architecture) -> bool:
    owner = known.owners.get(name)
    return owner is None or owner.in_backbone


def _alike(name: str, other: str, prefix: str) -> bool:
    return name.removeprefix(prefix) == other.removeprefix(prefix)
