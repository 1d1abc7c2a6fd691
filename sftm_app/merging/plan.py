"""A plan: what happens to each tensor and why, what it costs, decided before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sftm_app.checkpoints.adapter_config import LoraPair
from sftm_app.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sftm_app.checkpoints.compatibility import Preflight, preflight, refuse_unchanged
from sftm_app.checkpoints.matching import Source
from sftm_app.checkpoints.roles import Part, Role, assign
from sftm_app.checkpoints.writer import OutputTensor, check_room, refuse_existing
from sftm_app.devices import DEVICES
from sftm_app.errors import CheckpointError, CompatibilityError, InputError, OutputError, RecipeError
from sftm_app.linalg.svd import n_kept
from sftm_app.merging.memory import peak_bytes
from sftm_app.merging.methods import get_method
from sftm_app.merging.methods.base import Method
from sftm_app.merging.recipe import DTYPES, Recipe, parse_size

if TYPE_CHECKING:
    from sftm_app.merging.cost import Cost

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


def check_recipe(recipe: Recipe) -> Preflight:
    """Open base and tasks by their headers and compare them. What does not fit is listed, not raised.

    Raises
        CompatibilityError: checkpoints cannot be opened at all; names every one of them.
    """
    opened: dict[str, Checkpoint] = {}
    problems = []
    for path in dict.fromkeys((recipe.base, *(task.path for task in recipe.tasks))):
        try:
            opened[path] = open_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CompatibilityError(problems)
    tasks = [Source(task.name, opened[task.path], task.weight) for task in recipe.tasks]
    return preflight(opened[recipe.base], tasks, recipe.roles)


def make_plan(recipe: Recipe) -> Plan:
    """Check the inputs, decide every tensor's rule, and estimate what it takes, which is a second or two for a merge of
    minutes; see merging.cost.

    Raises
        InputError: base and tasks do not fit, or a task equals the base.
        ResourceError: it would take more memory than the recipe allows.
    """
    from sftm_app.merging.budget import check_budget  # which import this file
    from sftm_app.merging.cost import estimate

    found = check_recipe(recipe).require()
    refuse_unchanged(found)
    plan = plan_for(recipe, found)
    check_budget(plan)
    return replace(plan, cost=estimate(plan))


def plan_for(recipe: Recipe, found: Preflight) -> Plan:
    """The plan for inputs that were checked already, without its cost.

    Raises
        RecipeError: an adapter is asked for that would have to be as large as the model.
        InputError: the device is not there.
    """
    _check_kind(recipe, found)
    method = get_method(recipe.method)
    out_dtype = DTYPES[recipe.output.dtype] if recipe.output.dtype else None
    entries = []
    for name, info in found.base.tensors.items():
        assignment = assign(info, found.architecture.owners.get(name), recipe.split_fused)
        sources = tuple(match.source(name) for match in found.matches)
        role, why = assignment.role, assignment.why
        if role is not Role.BUFFER and not any(sources):
            role, why = Role.FIXED, "no task holds it, so it is copied from the base"
        rule = {Role.MATRIX: method.matrix_rule, Role.BUFFER: "copy", Role.FIXED: "copy"}.get(role)
        # Masks may hold infinities, which not every type has.
        retyped = out_dtype is not None and info.is_float and role is not Role.BUFFER
        dtype = out_dtype if out_dtype is not None and retyped else info.dtype
        entries.append(
            PlanEntry(
                OutputTensor(name, dtype, info.shape),
                role,
                rule or method.rules[role.value],
                why,
                sources,
                assignment.parts or _part_of_pairs(sources),
            )
        )
    device = resolve_device(recipe.device)
    needed = peak_bytes(entries, found, recipe.params, recipe.output, device)
    return Plan(recipe, method, found, tuple(entries), device, needed)


def _check_kind(recipe: Recipe, found: Preflight) -> None:
    """A full fine-tune changes every direction a little: an exact adapter of it would outgrow the model."""
    full = [task.name for task in found.tasks if task.checkpoint.adapter is None]
    output = recipe.output
    if output.kind == "adapter" and full and output.rank is None and output.energy is None:
        raise RecipeError(
            f"output: {', '.join(full)} are full checkpoints, so an adapter can only come close to the merge. "
            "Give it a rank (output.rank, such as 16) or a share of the change (output.energy, such as 0.9), or write "
            "a full model (output.kind: model)."
        )


def _part_of_pairs(sources: Sequence[str | LoraPair | None]) -> tuple[Part, ...]:
    """A LoRA pair is a linear map even where it changes no layer's weight, as an embedding table."""
    pairs = [source for source in sources if isinstance(source, LoraPair)]
    return (Part(transposed=pairs[0].transposed),) if pairs else ()


def available_devices() -> tuple[str, ...]:
    """The names of DEVICES that this machine can compute on, "auto" first."""
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return tuple(device for device in DEVICES if there[device])


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first of cuda, mps, cpu that this machine has.

    Raises
        InputError: the device asked for is not there.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if device in available))
    if name not in available:
        raise InputError(
            f"device: {name!r} is not available here (torch {torch.__version__} finds {', '.join(available[1:])}). "
            "Choose auto or cpu."
        )
    return torch.device(name)


def check_output(plan: Plan, output: Path) -> None:
    """Refuse an output folder before any compute.

    Raises
        OutputError: it exists, is an input or lies inside one, or its place cannot be looked into.
        ResourceError: the disk has too little room.
    """
    resolved = output.resolve()
    for checkpoint in plan.preflight.checkpoints:
        if resolved == checkpoint.path or checkpoint.path in resolved.parents:
            raise OutputError(f"{output}: is inside the input {checkpoint.path}. Choose another output folder.")
    refuse_existing(output)
    check_room(output, plan.output_bytes)
