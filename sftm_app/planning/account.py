"""The account of a merge: what becomes of every tensor of every task, in one line a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sftm_app.architecture.roles import Role
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.units import format_count
from sftm_app.weights.adapter_config import PEFT_PREFIX, LoraPair

MAX_NAMED = 3
_WORDS = {"method": "merged", "sum": "summed", "average": "averaged"}
_KEPT, _HEAD, _LEFT = "kept from the base", "kept as its own head", "not merged"
_ORDER = (*_WORDS.values(), _KEPT, _HEAD, _LEFT)


@dataclass(frozen=True)
class TaskAccount:
    """What becomes of one task's tensors.

    Attributes:
        task: the task's name.
        n_tensors: how many tensors its files hold.
        fates: (what becomes of them, why or "") -> their names in the task's files. Each tensor is in exactly one.
    """

    task: str
    n_tensors: int
    fates: Mapping[tuple[str, str], tuple[str, ...]]

    def sentence(self) -> str:
        """The account in one line; tensors that are not merged are named."""
        said = []
        for (fate, why), names in self.fates.items():
            reason = f"{why}: " if why else ""
            listed = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            said.append(f"{fate} {len(names)}" + (f" ({reason}{listed})" if fate in (_KEPT, _LEFT) else ""))
        return f"{self.task}, {format_count(self.n_tensors, 'tensor')}: {', '.join(said)}."


def accounts(plan: Plan) -> tuple[TaskAccount, ...]:
    """The account of every task."""
    return tuple(_account(plan, index) for index in range(len(plan.task_names)))


def _account(plan: Plan, index: int) -> TaskAccount:
    match, checkpoint = plan.preflight.matches[index], plan.preflight.tasks[index].checkpoint
    tensors = checkpoint.as_stored.tensors
    fates: dict[tuple[str, str], list[str]] = {}
    left = dict.fromkeys(tensors)
    for name, fate in _fates(plan, index):
        if name in left:
            del left[name]
            fates.setdefault(fate, []).append(name)
    default = "no place in the base" if checkpoint.adapter is None else "copies that PEFT saves with the pairs"
    for name in left:
        why = match.left.get(name, default if name in checkpoint.tensors else "scales, multiplied into the weights")
        fates.setdefault((_LEFT, why), []).append(name)
    found = {fate: tuple(names) for fate, names in sorted(fates.items(), key=lambda item: _ORDER.index(item[0][0]))}
    return TaskAccount(plan.task_names[index], len(tensors), found)


def _fates(plan: Plan, index: int) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names in the task's files, and what becomes of them."""
    for entry in plan.entries:
        source = entry.sources[index]
        if isinstance(source, LoraPair):
            yield from ((name, _fate(entry)) for one in source.each for name in (one.a, one.b))
        elif source is not None:
            yield source, _fate(entry)
    heads = {head.removeprefix(PEFT_PREFIX) for head in plan.preflight.matches[index].heads}
    for name in plan.preflight.tasks[index].checkpoint.tensors:
        if name.removeprefix(PEFT_PREFIX) in heads:
            yield name, (_HEAD, "")


def _fate(entry: PlanEntry) -> tuple[str, str]:
    if entry.rule in _WORDS:
        return _WORDS[entry.rule], ""
    return _KEPT, "not trained" if entry.role is Role.BUFFER else "by the recipe"
