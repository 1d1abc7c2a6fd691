"""A plan: what happens to each tensor and why, and what that takes. Decided before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sftm_app.architecture.blocks import Place
from sftm_app.architecture.roles import Part, Role
from sftm_app.linalg.factors import n_kept
from sftm_app.methods.base import Method
from sftm_app.planning.recipe import Recipe, parse_size
from sftm_app.preflight.preflight import Preflight
from sftm_app.units import format_bytes, format_duration
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.writer import OutputTensor

COMPUTE_DTYPE = torch.float32


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the output.

    Attributes:
        output: its name, dtype and shape.
        role: what it is in the model.
        rule: "method" (the plan's method merges it), "sum" (scaling times the weighted sum), "average", or "copy".
        why: the reason for its role.
        sources: for each task the tensor's name in its files or its LoRA pair, None where the task lacks it.
        parts: the linear maps in it, which are merged one by one; empty where the tensor is merged as it is.
        elementwise: whether its rule needs only the same element of every task.
        in_span: whether the delta's rank is at most the sum of the task matrices' ranks.
        measured: whether to measure what each task keeps.
        calibrated: whether the method's delta is calibrated, which needs whole matrices.
        place: where in the model it lies.
    """

    output: OutputTensor
    role: Role
    rule: str
    why: str
    sources: tuple[str | LoraPair | None, ...]
    parts: tuple[Part, ...] = ()
    elementwise: bool = False
    in_span: bool = False
    measured: bool = False
    calibrated: bool = False
    place: Place = Place()

    @property
    def name(self) -> str:
        """The tensor's name in the base and in the output."""
        return self.output.name

    @property
    def pairs(self) -> tuple[LoraPair, ...]:
        """The tasks' LoRA pairs."""
        return tuple(source for source in self.sources if isinstance(source, LoraPair))

    @property
    def n_dense(self) -> int:
        """How many tasks hold a tensor of their own."""
        return sum(isinstance(source, str) for source in self.sources)

    @property
    def in_pieces(self) -> bool:
        """Whether it is merged a few elements at a time, on the CPU, where these stay in the processor's caches.

        Reading the elements takes longer than adding them up, so a GPU would not help.
        """
        return self.elementwise and not self.measured and not self.pairs

    @property
    def in_experts(self) -> bool:
        """Whether it is a stack of experts, merged expert by expert."""
        return bool(self.parts) and self.parts[0].expert is not None

    def adapter_bytes(self, rank: int | float | None) -> int:
        """Bytes in an adapter whose layers are cut to `rank`, at most: two thin factors per linear map."""
        if self.rule == "copy":
            return 0
        if not self.parts:
            return self.output.n_bytes
        total = 0
        for part in self.parts:
            m, n = part.shape_in(self.output.shape)
            ranks = [s.rank if isinstance(s, LoraPair) else min(m, n) for s in self.sources if s is not None]
            most = sum(ranks) if self.in_span else min(m, n)
            total += (m + n) * min(most, n_kept(rank, m, n)) * self.output.dtype.itemsize
        return total


@dataclass(frozen=True)
class EntryTasks:
    """The tasks that an entry is merged from.

    Attributes:
        present: their indices.
        weights: their weights; what a task with a negative weight changed is taken away (see `engine.signs`).
        idle_weight: the summed sizes of the weights of adapters without this tensor. An adapter without a tensor leaves
            it as the base has it; a full checkpoint without it says nothing about it.
    """

    present: tuple[int, ...]
    weights: tuple[float, ...]
    idle_weight: float


@dataclass(frozen=True)
class EntryCost:
    """What one tensor of the output takes: seconds, bytes of memory at the worst moment, bytes read and written."""

    name: str
    seconds: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a merge takes.

    Attributes:
        entries: the tensors in the plan's order.
        hashing_s: seconds that hashing the inputs for the report adds.
        peak_bytes: memory at the worst moment.
        written_bytes: size of the output.
        budget: a sentence on the memory that is allowed or free, where there is something to say.
    """

    entries: tuple[EntryCost, ...]
    hashing_s: float
    peak_bytes: int
    written_bytes: int
    budget: str | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the whole merge, within a factor of about two."""
        return sum(entry.seconds for entry in self.entries) + self.hashing_s

    @property
    def read_bytes(self) -> int:
        """Bytes read from the inputs."""
        return sum(entry.read_bytes for entry in self.entries)

    def sentences(self) -> list[str]:
        """The cost in words, and what takes longest where that is worth knowing."""
        whole = (
            f"The merge takes {format_duration(self.seconds)} and {format_bytes(self.peak_bytes)} of memory (Python "
            f"and torch take a few seconds and about 0.3 GB more). It reads {format_bytes(self.read_bytes)} and writes "
            f"{format_bytes(self.written_bytes)}."
        )
        longest = [f"{one.name} ({format_duration(one.seconds)})" for one in self.costliest(3) if one.seconds >= 5]
        budget = [self.budget] if self.budget else []
        return [whole, *budget, *([f"These take longest: {', '.join(longest)}."] if longest else [])]

    def costliest(self, count: int = 10) -> tuple[EntryCost, ...]:
        """The tensors that take longest, longest first."""
        return tuple(sorted(self.entries, key=lambda entry: -entry.seconds)[:count])


@dataclass(frozen=True)
class Plan:
    """Everything decided.

    Attributes:
        recipe, method, preflight: what the plan is for.
        entries: the tensors of the output, in the base's order.
        device: where to compute.
        memory_bytes: the most that the merge may take, or None for no limit.
        peak_bytes: memory at the worst moment, if nothing is cached; see `planning.memory`.
        cost: what the merge takes.
        prepared: what the method has found out about each task vector, see `engine.task_vectors`; None before it did.
    """

    recipe: Recipe
    method: Method
    preflight: Preflight
    entries: tuple[PlanEntry, ...]
    device: torch.device
    memory_bytes: int | None
    peak_bytes: int
    cost: Cost
    prepared: tuple[float, ...] | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in order."""
        return tuple(task.name for task in self.preflight.tasks)

    def tasks_of(self, entry: PlanEntry) -> EntryTasks:
        """The tasks that hold an entry's tensor, with their weights."""
        tasks = self.preflight.tasks
        present = tuple(index for index, source in enumerate(entry.sources) if source is not None)
        idle = sum(
            abs(task.weight)
            for task, source in zip(tasks, entry.sources, strict=True)
            if source is None and task.checkpoint.adapter is not None
        )
        return EntryTasks(present, tuple(tasks[index].weight for index in present), idle)

    def prepared_for(self, entry: PlanEntry) -> tuple[float, ...]:
        """What the method has found out about the tasks that hold an entry's tensor; empty where it needs nothing."""
        return tuple(self.prepared[index] for index in self.tasks_of(entry).present) if self.prepared else ()

    def factor_of(self, entry: PlanEntry) -> float:
        """What an entry's delta is multiplied by because of where it lies, apart from the scaling."""
        return self.method.place_factor(self.recipe.params, entry.place.depth, entry.place.kind)

    @property
    def writes_adapter(self) -> bool:
        """Whether the output is a LoRA adapter instead of a model."""
        return self.recipe.output.kind == "adapter"

    @property
    def output_bytes(self) -> int:
        """Size of the output's tensors, task heads included; of an adapter at most."""
        return output_bytes(self.recipe, self.preflight, self.entries)

    @property
    def outputs(self) -> list[OutputTensor]:
        """The tensors of the output in the order in which transformers would write them; unknown ones come last."""
        order = {name: position for position, name in enumerate(self.preflight.architecture.owners)}
        return sorted((e.output for e in self.entries), key=lambda output: order.get(output.name, len(order)))

    @property
    def max_shard_bytes(self) -> int:
        """The largest size of a weight file."""
        return parse_size(self.recipe.output.max_shard_size)


def output_bytes(recipe: Recipe, found: Preflight, entries: tuple[PlanEntry, ...]) -> int:
    """Size of the tensors that a merge writes, task heads included; of an adapter at most."""
    heads = sum(
        task.checkpoint.tensors[name].n_bytes
        for task, match in zip(found.tasks, found.matches, strict=True)
        for name in match.heads
    )
    if recipe.output.kind == "adapter":
        return heads + sum(entry.adapter_bytes(recipe.output.rank) for entry in entries)
    return heads + sum(entry.output.n_bytes for entry in entries)
