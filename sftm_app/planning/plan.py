"""A plan: what happens to each tensor and why. Decided before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sftm_app.architecture.roles import Part, Role
from sftm_app.linalg.factors import n_kept
from sftm_app.methods.base import Method
from sftm_app.planning.recipe import Recipe, parse_size
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.writer import OutputTensor

if TYPE_CHECKING:
    from sftm_app.planning.cost import Cost

COMPUTE_DTYPE = torch.float32


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the output.

    rule: "superpose", "sum", "average" or "copy". sources: for each task the tensor's name in its files or its LoRA
    pair, None where the task lacks it. parts: the linear maps that are merged one by one; empty where the tensor is
    merged as it stands.
    """

    output: OutputTensor
    role: Role
    rule: str
    why: str
    sources: tuple[str | LoraPair | None, ...]
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def pairs(self) -> tuple[LoraPair, ...]:
        """The tasks' LoRA pairs."""
        return tuple(source for source in self.sources if isinstance(source, LoraPair))

    @property
    def n_dense(self) -> int:
        """How many tasks hold a tensor of their own."""
        return sum(isinstance(source, str) for source in self.sources)

    def adapter_bytes(self, rank: int | float | None) -> int:
        """At most what the entry takes in an adapter whose layers are cut to `rank`: two thin factors a linear map."""
        if self.rule == "copy":
            return 0
        if not self.parts:
            return self.output.n_bytes
        total = 0
        for part in self.parts:
            m, n = part.shape_in(self.output.shape)
            asked = sum(s.rank if isinstance(s, LoraPair) else min(m, n) for s in self.sources if s is not None)
            total += (m + n) * min(asked, n_kept(rank, m, n)) * self.output.dtype.itemsize
        return total

    @property
    def cost(self) -> float:
        """Relative work where no time was estimated: elements touched, times the short side for an SVD."""
        n_elements = float(torch.Size(self.output.shape).numel())
        work = n_elements * (1 + self.n_dense + len(self.pairs))
        if self.rule == "superpose":
            short_side = min(self.parts[0].shape_in(self.output.shape))
            work += n_elements * short_side * self.n_dense
            work += sum(pair.n_elements * pair.rank for pair in self.pairs)
        return 1 + work


@dataclass(frozen=True)
class Plan:
    """Everything decided. `peak_bytes` is the memory that it takes at the worst moment, see merging.memory.

    cost: what it will take, where that was estimated.
    """

    recipe: Recipe
    method: Method
    preflight: Preflight
    entries: tuple[PlanEntry, ...]
    device: torch.device
    peak_bytes: int
    cost: Cost | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.preflight.tasks)

    @property
    def output_bytes(self) -> int:
        heads = sum(
            task.checkpoint.tensors[name].n_bytes
            for task, match in zip(self.preflight.tasks, self.preflight.matches, strict=True)
            for name in match.heads
        )
        if self.recipe.output.kind == "adapter":
            return heads + sum(entry.adapter_bytes(self.recipe.output.rank) for entry in self.entries)
        return heads + sum(entry.output.n_bytes for entry in self.entries)

    @property
    def outputs(self) -> list[OutputTensor]:
        """The tensors of the output in the order in which transformers would write them; unknown ones come last."""
        order = {name: position for position, name in enumerate(self.preflight.architecture.owners)}
        return sorted((e.output for e in self.entries), key=lambda output: order.get(output.name, len(order)))

    @property
    def max_shard_bytes(self) -> int:
        return parse_size(self.recipe.output.max_shard_size)
