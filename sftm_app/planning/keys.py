"""Cache keys of task matrices and merged layers: everything that they depend on. Nothing is read to make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sftm_app.architecture.blocks import Place
from sftm_app.architecture.roles import Part
from sftm_app.linalg.factors import Rank, n_kept
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.disk_cache import DiskCache, FactorKey, digest, file_key, is_large

# Raise this when `factorise` gives other factors than before.
VERSION = 2


def matrix_key(found: Preflight, name: str, part: Part | None, index: int) -> str | None:
    """What identifies one task matrix: its files, its tensors and its part.

    Args:
        found: base and tasks.
        name: the tensor's name in the base.
        part: the linear map inside the tensor.
        index: the task.

    Returns:
        A key, or None where factors are computed as fast as they are read: LoRA pairs, and what is no matrix.
    """
    source = found.matches[index].source(name)
    if part is None or not isinstance(source, str):
        return None
    base, task = found.base, found.tasks[index].checkpoint
    files = [
        file_key(one.files[tensor], one.stamps[one.files[tensor]]) for one, tensor in ((base, name), (task, source))
    ]
    rows = [mapped.digest for mapped in (base.rows.get(name), task.rows.get(source)) if mapped]
    files += [
        file_key(scaling.scale_file, one.stamps[scaling.scale_file])
        for one, tensor in ((base, name), (task, source))
        if (scaling := one.scalings.get(tensor))
    ]
    return digest("task matrix", VERSION, COMPUTE_DTYPE, repr(part), name, source, files, *rows)


def factor_key(
    key: str | None, shape: tuple[int, int], rank: Rank = None, device: torch.device | None = None
) -> FactorKey | None:
    """The key of a task matrix's leading features; None for small matrices, and where there is no `matrix_key`.

    A share of energy needs all features: cut what the cache gives.

    Args:
        key: see `matrix_key`.
        shape: (m, n) of the task matrix.
        rank: how many features are needed.
        device: where they are needed; the CPU by default.
    """
    if key is None or not is_large(shape):
        return None
    return FactorKey(key, shape, COMPUTE_DTYPE, n_kept(rank, *shape), device or torch.device("cpu"))


@dataclass(frozen=True)
class LayerKey:
    """Everything that a merged layer at scaling 1 depends on.

    Attributes:
        matrices: `matrix_key` of every task that holds the layer.
        method, params: the method's name, and its params at scaling 1.
        weights, idle_weight: of the tasks.
        task_names: of the tasks that hold the layer: random masks depend on them.
        measured: whether preservation is measured.
        device: the type of the device.
        place: where in the model it lies, which a method may ask.
        prepared: what the method has found out about the tasks.
    """

    matrices: tuple[str, ...]
    method: str
    params: Any
    weights: tuple[float, ...]
    idle_weight: float
    task_names: tuple[str, ...]
    measured: bool
    device: str
    place: Place = Place()
    prepared: tuple[float, ...] = ()

    def address(self, cache: DiskCache) -> str:
        """The key in a cache, which holds for one version, processor and number of threads."""
        return digest("layer", cache.made_by, self)


def layer_key(plan: Plan, entry: PlanEntry, part: Part | None, device: torch.device) -> LayerKey | None:
    """The key of one part of an entry.

    Returns:
        A key, or None where a layer is not worth caching: small ones, LoRA pairs, and rules other than a method that
        needs whole tensors.
    """
    if entry.rule != "method" or entry.elementwise or part is None or not is_large(part.shape_in(entry.output.shape)):
        return None
    tasks = plan.tasks_of(entry)
    found = [matrix_key(plan.preflight, entry.name, part, index) for index in tasks.present]
    matrices = tuple(key for key in found if key is not None)
    if not matrices or len(matrices) < len(found):
        return None
    params = at_scaling_1(plan.recipe.params)
    weights = tuple(map(float, tasks.weights))
    return LayerKey(
        matrices,
        plan.method.name,
        params,
        weights,
        float(tasks.idle_weight),
        tuple(plan.task_names[index] for index in tasks.present),
        entry.measured,
        device.type,
        entry.place,
        plan.prepared_for(entry),
    )


def vector_key(found: Preflight, task: int, tensors: Sequence[tuple[str, str | LoraPair]], *rest: object) -> str:
    """The key of a number that depends on many tensors of one task.

    Args:
        found: base and tasks.
        task: its index.
        tensors: names in the base, and where the task has them.
        rest: what else the number depends on.
    """
    files = [sorted(file_key(*file) for file in of.stamps.items()) for of in (found.base, found.tasks[task].checkpoint)]
    rows = [mapped.digest for of in (found.base, found.tasks[task].checkpoint) for mapped in of.rows.values()]
    return digest("task vector", VERSION, COMPUTE_DTYPE, tensors, files, rest, *rows)


def at_scaling_1(params: Any) -> Any:
    """The same params with what only scales the delta set to 1: the scaling, and the first block's share of it."""
    return replace(params, **{name: 1.0 for name in ("scaling", "depth") if hasattr(params, name)})


def scaling_of(params: Any) -> float:
    """The scaling in a method's params; 1 where it has none."""
    return float(getattr(params, "scaling", 1.0))


def is_cached(plan: Plan, entry: PlanEntry, cache: DiskCache | None, device: torch.device) -> bool:
    """Whether every part of an entry is cached as a merged layer."""
    if cache is None or entry.rule != "method" or not entry.parts:
        return False
    keys: Sequence[LayerKey | None] = [layer_key(plan, entry, part, device) for part in entry.parts]
    return all(key is not None and cache.holds(key.address(cache)) for key in keys)
