"""A plan: what happens to each tensor and why, what it costs, decided before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sftm_app.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sftm_app.checkpoints.compatibility import Preflight, Source, preflight, refuse_unchanged
from sftm_app.checkpoints.roles import Role, assign
from sftm_app.checkpoints.writer import OutputTensor, check_room, refuse_existing
from sftm_app.devices import DEVICES
from sftm_app.errors import CheckpointError, CompatibilityError, InputError, OutputError
from sftm_app.merging.methods import get_method
from sftm_app.merging.methods.base import Method
from sftm_app.merging.recipe import DTYPES, Recipe, parse_size

COMPUTE_DTYPE = torch.float32


@dataclass(frozen=True)
class PlanEntry:
    """One tensor of the output.

    rule: "superpose", "sum", "average" or "copy". sources: for each task the tensor's name in its files, None where the
    task lacks it. transposed: the stored weight is in x out.
    """

    output: OutputTensor
    role: Role
    rule: str
    why: str
    sources: tuple[str | None, ...]
    transposed: bool

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def cost(self) -> float:
        """Relative work, for the estimate of the time left: elements touched, times the short side for an SVD."""
        n_elements = float(torch.Size(self.output.shape).numel())
        n_tasks = sum(source is not None for source in self.sources)
        short_side = min(self.output.shape[0], n_elements / max(1, self.output.shape[0])) if self.output.shape else 1
        return 1 + n_elements * (1 + n_tasks * (1 + (short_side if self.rule == "superpose" else 0)))


@dataclass(frozen=True)
class Plan:
    """Everything decided. `peak_bytes` estimates the memory that tensors take at the largest layer."""

    recipe: Recipe
    method: Method
    preflight: Preflight
    entries: tuple[PlanEntry, ...]
    device: torch.device
    peak_bytes: int

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
        return heads + sum(entry.output.n_bytes for entry in self.entries)

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
    return preflight(opened[recipe.base], tasks)


def make_plan(recipe: Recipe) -> Plan:
    """Check the inputs and decide every tensor's rule.

    Raises
        InputError: base and tasks do not fit, or a task equals the base.
    """
    found = check_recipe(recipe).require()
    refuse_unchanged(found)
    return plan_for(recipe, found)


def plan_for(recipe: Recipe, found: Preflight) -> Plan:
    """The plan for inputs that were checked already."""
    method = get_method(recipe.method)
    out_dtype = DTYPES[recipe.output.dtype] if recipe.output.dtype else None
    entries = []
    for name, info in found.base.tensors.items():
        assignment = assign(info, found.architecture.owners.get(name))
        sources = tuple(match.names.get(name) for match in found.matches)
        role, why = assignment.role, assignment.why
        if role is not Role.BUFFER and not any(sources):
            role, why = Role.FIXED, "no task holds it, so it is copied from the base"
        rule = {Role.MATRIX: method.matrix_rule, Role.BUFFER: "copy", Role.FIXED: "copy"}.get(role)
        dtype = out_dtype if out_dtype is not None and info.is_float else info.dtype
        entries.append(
            PlanEntry(
                OutputTensor(name, dtype, info.shape),
                role,
                rule or method.rules[role.value],
                why,
                sources,
                assignment.transposed,
            )
        )
    device = resolve_device(recipe.device)
    return Plan(recipe, method, found, tuple(entries), device, max(map(_peak_bytes, entries), default=0))


def _peak_bytes(entry: PlanEntry) -> int:
    """Base, T task matrices and the result in float32; for a superposition T factor pairs and two copies on top."""
    size = torch.Size(entry.output.shape).numel() * COMPUTE_DTYPE.itemsize
    n_tasks = sum(source is not None for source in entry.sources)
    factors = 2 * n_tasks + 2 if entry.rule == "superpose" else 0
    return size * (2 + n_tasks + factors)


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
    for checkpoint in (plan.preflight.base, *(task.checkpoint for task in plan.preflight.tasks)):
        if resolved == checkpoint.path or checkpoint.path in resolved.parents:
            raise OutputError(f"{output}: is inside the input {checkpoint.path}. Choose another output folder.")
    refuse_existing(output)
    check_room(output, plan.output_bytes)
