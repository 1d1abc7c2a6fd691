"""Task matrices as they are read: a task's tensor minus the base's, or a LoRA pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint, TensorReader, open_reader


class EntryTasks:
    """Which tasks an entry is merged from, by their indices, and their weights.

    idle_weight: a full checkpoint that lacks a tensor says nothing of it; an adapter says that it is the base's.
    """

    def __init__(self, plan: Plan, entry: PlanEntry) -> None:
        self._plan = plan
        self._superposed = entry.rule == "superpose"
        self.present = [index for index, source in enumerate(entry.sources) if source is not None]
        self.weights = [plan.preflight.tasks[index].weight for index in self.present]
        self.idle_weight = sum(
            task.weight
            for task, source in zip(plan.preflight.tasks, entry.sources, strict=True)
            if source is None and task.checkpoint.adapter is not None
        )

    def notes(self, device: torch.device) -> dict[str, Any]:
        """For the report: another device than the plan's, and the tasks where that is not all of them."""
        notes: dict[str, Any] = {}
        if self._superposed and device.type != self._plan.device.type:
            notes["device"] = str(device)
        names = self._plan.task_names
        if len(self.present) < len(names):
            notes["tasks"] = [names[index] for index in self.present]
        return notes


class TaskMatrices(Sequence[Delta]):
    """The changes of the tasks that hold a tensor, each read when it is asked for and never kept.

    Sequences of them would take T times the layer: a method that goes from one to the next holds one at a time.
    """

    def __init__(
        self,
        read: Callable[[int], Delta],
        indices: Sequence[int],
        device: torch.device,
        name: Callable[[int], str | None] = lambda index: None,
    ) -> None:
        self.device = device
        self._read = read
        self._name = name
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Delta:  # type: ignore[override]  # one at a time, no slices
        return self._read(self._indices[index])

    def name(self, index: int) -> str | None:
        """What no other change is ever called, see change_name(); None where that is not known."""
        return self._name(self._indices[index])


def task_matrices_of(
    plan: Plan,
    entry: PlanEntry,
    part: Part | None,
    indices: Sequence[int],
    tasks: Sequence[TensorReader],
    origin: Tensor | None,
    device: torch.device,
) -> TaskMatrices:
    """Changes of one part of a tensor, or of all of it, by the tasks with these indices; `origin` is what the base
    holds of the tensor, or of the part's one expert."""
    inside, expert = (part.in_slice, part.expert) if part else (None, None)

    def read(index: int) -> Delta:
        source = entry.sources[index]
        assert source is not None
        return part_of(read_task_matrix(tasks[index], source, origin, device, expert), inside)

    return TaskMatrices(read, indices, device, lambda index: change_name(plan, entry, part, index))


def change_name(plan: Plan, entry: PlanEntry, part: Part | None, index: int) -> str | None:
    """What no other task matrix of any file of this machine is called: that of task `index` in one part of a tensor.

    None for a LoRA pair, which is quick to read, and for a tensor that is no matrix.
    """
    source = entry.sources[index]
    if part is None or not isinstance(source, str):
        return None
    found = plan.preflight
    base, task = _tensor_name(found.base, entry.name), _tensor_name(found.tasks[index].checkpoint, source)
    return f"{part}, {task} minus {base}"


def _tensor_name(checkpoint: Checkpoint, name: str) -> str:
    """Names one tensor by its file's path and stamp, so that a changed file gives another name."""
    file = checkpoint.files[name]
    return f"{name} of {file.resolve()} {checkpoint.stamps[file]}"


def read_task_matrix(
    read: TensorReader,
    source: str | LoraPair,
    origin: Tensor | None,
    device: torch.device,
    expert: int | None = None,
    span: tuple[int, int] | None = None,
) -> Delta:
    """A task's tensor minus the base's (`origin`), both upcast first: in fp16 60000 - (-60000) would be infinite.

    A LoRA pair needs no origin. expert, span: only this entry of a stack, or these elements, see TensorReader; `origin`
    is then the same of the base.
    """
    if isinstance(source, LoraPair):
        thin = read_pair(read, source)
        return LowRank(thin.left.to(device), thin.right.to(device))
    assert origin is not None
    return read.finite(source, origin.dtype, expert, span).to(device).sub_(origin)


def read_pair(read: TensorReader, pair: LoraPair) -> LowRank:
    """scaling * B @ A as a low-rank linear map (m, n) in the compute dtype, on the CPU."""
    A, B = read.finite(pair.a, COMPUTE_DTYPE), read.finite(pair.b, COMPUTE_DTYPE)
    return LowRank(B.reshape(len(B), -1) * pair.scaling, A.reshape(len(A), -1))


def part_of(change: Delta, part: Part | None) -> Delta:
    """A whole tensor's change as that of one of its parts, (m, n)."""
    if part is None or isinstance(change, LowRank):
        # A LoRA pair is a linear map already; it changes all of a tensor, never one expert of a stack.
        return change.rows(*part.rows) if isinstance(change, LowRank) and part and part.rows else change
    return part.of(change)


@contextmanager
def open_readers(plan: Plan) -> Iterator[tuple[TensorReader, list[TensorReader]]]:
    """Of the base and of every task."""
    with ExitStack() as stack:
        base = stack.enter_context(open_reader(plan.preflight.base))
        yield base, [stack.enter_context(open_reader(task.checkpoint)) for task in plan.preflight.tasks]
