"""A plan: what happens to each tensor and why, what it costs, decided before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sftm_app.architecture.roles import Part, Role, assign
from sftm_app.errors import CheckpointError, CompatibilityError, RecipeError
from sftm_app.methods import get_method
from sftm_app.planning.device import resolve_device
from sftm_app.planning.memory import peak_bytes
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.planning.recipe import DTYPES, Recipe
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import Preflight, preflight, refuse_unchanged
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint
from sftm_app.weights.writer import OutputTensor

if TYPE_CHECKING:
    pass


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
    from sftm_app.planning.budget import check_budget  # which import this file
    from sftm_app.planning.cost import estimate

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
