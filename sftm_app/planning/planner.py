"""Make a plan: decide every tensor's rule, and say what the merge takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sftm_app.architecture.blocks import Place, places_of
from sftm_app.architecture.roles import Part, Role, assign
from sftm_app.errors import CheckpointError, CompatibilityError, RecipeError
from sftm_app.methods import get_method
from sftm_app.methods.base import Method, refuse_task_count
from sftm_app.methods.params import common_of
from sftm_app.planning.cost import estimate
from sftm_app.planning.device import resolve_device
from sftm_app.planning.memory import MemoryModel, peak_bytes
from sftm_app.planning.plan import Cost, Plan, PlanEntry
from sftm_app.planning.recipe import DTYPES, Recipe, parse_size
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import Preflight, preflight
from sftm_app.session import Session
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint
from sftm_app.weights.modules import module_of
from sftm_app.weights.writer import OutputTensor

# With `measure: auto`, layers up to this shorter side are measured for methods that need no features themselves.
# Factorising them takes some 20 ms per task; at 4096 it would take longer than all the rest of a plain average.
MEASURED_SIDE = 512


def open_inputs(recipe: Recipe, session: Session) -> Preflight:
    """Open base and tasks by their headers and compare them. Mismatches are listed, not raised.

    Raises:
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
    return preflight(opened[recipe.base], tasks, recipe.roles, session.architectures, recipe.tokenizer)


def make_plan(recipe: Recipe, found: Preflight, session: Session) -> Plan:
    """Plan a recipe for inputs that fit together.

    Raises:
        RecipeError: the method merges another number of tasks, or an adapter would have to be as large as the model.
        InputError: the device is not there.
    """
    method = get_method(recipe.method)
    refuse_task_count(method, len(found.tasks))
    _refuse_exact_adapter(recipe, found)
    _refuse_new_rows_in_adapter(recipe, found)
    places = places_of(found.base.tensors, found.architecture.owners)
    entries = tuple(_entry(recipe, method, found, name, places[name]) for name in found.base.tensors)
    device = resolve_device(recipe.device if recipe.device != "auto" else session.device)
    model = MemoryModel(method, recipe.params, found, recipe.output, device, session.n_threads)
    budget = recipe.memory or session.memory
    memory_bytes = parse_size(budget, "memory") if budget else None
    free = Cost((), 0.0, 0, 0)
    plan = Plan(recipe, method, found, entries, device, memory_bytes, peak_bytes(entries, model), free)
    return replace(plan, cost=estimate(plan, model, session))


def _entry(recipe: Recipe, method: Method, found: Preflight, name: str, place: Place) -> PlanEntry:
    info = found.base.tensors[name]
    assignment = assign(info, found.architecture.owners.get(name), recipe.split_fused)
    sources = tuple(match.source(name) for match in found.matches)
    role, why = assignment.role, assignment.why
    if role is not Role.BUFFER and not any(sources):
        role, why = Role.FIXED, "no task holds it, so it is copied from the base"
    rule = rule_of(role, method)
    # Masks may hold infinities, which not every dtype has.
    retyped = recipe.output.dtype is not None and info.is_float and role is not Role.BUFFER
    dtype = DTYPES[recipe.output.dtype] if recipe.output.dtype and retyped else info.dtype
    parts = assignment.parts or _part_of_pairs(sources)
    calibrated = role is Role.MATRIX and common_of(recipe.params).calibration > 0
    stays_low = method.predict is not None or method.stays_low_rank
    return PlanEntry(
        OutputTensor(name, dtype, info.shape, module_of(name, found.base.modules) or found.base.main),
        role,
        rule,
        why,
        sources,
        parts,
        elementwise=rule in ("sum", "average") or (rule == "method" and method.elementwise and not calibrated),
        in_span=rule in ("sum", "average") or (rule == "method" and stays_low),
        measured=role is Role.MATRIX and _is_measured(recipe.measure, method, parts, info.shape),
        calibrated=calibrated,
        place=place,
    )


def rule_of(role: Role, method: Method) -> str:
    """What happens to tensors of a role: see `PlanEntry.rule`."""
    return {Role.MATRIX: "method", Role.BUFFER: "copy", Role.FIXED: "copy"}.get(role) or method.roles[role.value]


def merged_tensors(found: Preflight, method: Method, task: int) -> list[tuple[str, str | LoraPair]]:
    """The tensors of one task that a method merges itself: their names in the base, and where the task has them."""
    named = []
    for name, info in found.base.tensors.items():
        source = found.matches[task].source(name)
        role = assign(info, found.architecture.owners.get(name)).role
        if source is not None and rule_of(role, method) == "method":
            named.append((name, source))
    return named


def _is_measured(measure: str, method: Method, parts: Sequence[Part], shape: tuple[int, ...]) -> bool:
    if measure != "auto":
        return measure == "all"
    # A method that needs features has them at hand.
    return method.features is not None or all(min(part.shape_in(shape)) <= MEASURED_SIDE for part in parts)


def _refuse_exact_adapter(recipe: Recipe, found: Preflight) -> None:
    """A full fine-tune changes every direction a little: an exact adapter of it would outgrow the model."""
    full = [task.name for task in found.tasks if task.checkpoint.adapter is None]
    output = recipe.output
    if output.kind == "adapter" and full and output.rank is None and output.energy is None:
        raise RecipeError(
            f"output: {', '.join(full)} are full checkpoints, so an adapter can only come close to the merge. "
            "Give it a rank (output.rank, such as 16) or a share of the energy (output.energy, such as 0.9), or write "
            "a full model (output.kind: model)."
        )


def _refuse_new_rows_in_adapter(recipe: Recipe, found: Preflight) -> None:
    """An adapter belongs to the base as it is, whose tables have no other rows."""
    if recipe.output.kind == "adapter" and found.base.rows:
        raise RecipeError(
            "output: the merged model has tokens that the base lacks, so an adapter of the base cannot hold it. Write "
            "a full model (output.kind: model), or leave these tokens out (`tokenizer: base`)."
        )


def _part_of_pairs(sources: Sequence[str | LoraPair | None]) -> tuple[Part, ...]:
    """A LoRA pair is a linear map even where it changes no layer's weight, such as an embedding table."""
    pairs = [source for source in sources if isinstance(source, LoraPair)]
    return (Part(transposed=pairs[0].transposed),) if pairs else ()
