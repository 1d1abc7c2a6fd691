"""SFTM Studio from Python: check, inspect, merge, extract."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftm_app.errors import RecipeError
from sftm_app.methods.params import refuse_unknown
from sftm_app.output.adapter.extraction import RankCost, rank_costs
from sftm_app.output.executors import Executor, LocalExecutor
from sftm_app.output.progress import Progress
from sftm_app.output.ray_executor import RayExecutor
from sftm_app.output.report import Report
from sftm_app.output.save import save
from sftm_app.planning.planner import check_recipe, make_plan
from sftm_app.planning.recipe import Recipe, TaskEntry, absolute, make_recipe
from sftm_app.preflight.preflight import Preflight

if TYPE_CHECKING:
    from sftm_app.inspection.survey import Survey

EXECUTORS = (LocalExecutor.name, RayExecutor.name)

Tasks = Sequence[str | Path | Mapping[str, Any]] | Mapping[str, str | Path]


def merge(
    base: str | Path,
    tasks: Tasks,
    output: str | Path,
    method: str = "sftm",
    device: str = "auto",
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    roles: Mapping[str, str] | None = None,
    split_fused: bool = False,
    memory: str | None = None,
    kind: str = "model",
    adapter_rank: int | float | None = None,
    adapter_energy: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume: bool | None = None,
    executor: str = "local",
    address: str | None = None,
    workers: int | None = None,
    **params: Any,
) -> Report:
    """Merge task checkpoints into their base and write the folder `output`, which `from_pretrained` loads.

    tasks: checkpoint folders; or entries {"path": ..., "name": ..., "weight": ...}; or a mapping name -> folder.
    method: "sftm" (params variant, rank, scaling), "average" or "task_arithmetic" (scaling).
    device: "auto", "cpu", "cuda" or "mps". dtype: the type written, None for the base's.
    roles: what tensors are, by patterns of their names, where a guess or the architecture says otherwise.
    kind: "model", or "adapter" for one LoRA adapter, which PEFT loads, cut to adapter_rank and adapter_energy (see
    extract).
    split_fused: merge query, key and value (or gate and up) one by one where one matrix holds them.
    memory: a size such as "4GB", beyond which the merge is not begun; of a GPU, beyond which a layer goes to the CPU.
    progress: called after each tensor and once before the last step.
    resume: where a killed merge left its finished tensors: True goes on with them (with the same result as if it had
    never been stopped), False throws them away, None refuses. Where there are none all three are the same.
    executor: "local" merges in this process, "ray" by the workers of a Ray cluster, with the same result: of the one at
    `address` ("auto" or HOST:PORT), or of one with `workers` processes that is started here for this merge.

    Raises
        InputError: inputs, parameters or output cannot be used, or what was left there was made from something else;
            nothing was computed or written.
        NumericalError, ResourceError: the merge failed on the way; nothing is left behind.
    """
    target: dict[str, Any] = {"path": str(output), "dtype": dtype, "max_shard_size": max_shard_size, "kind": kind}
    target |= {"rank": adapter_rank, "energy": adapter_energy}
    recipe = make_recipe(base, _listed(tasks), method, params, target, device, roles, split_fused, memory)
    # The recipe is saved beside the model, where relative paths would mean something else.
    by = get_executor(executor, address, workers)
    return merge_recipe(absolute(recipe, Path.cwd()), Path(os.path.expanduser(output)), progress, resume, by)


def get_executor(name: str, address: str | None = None, workers: int | None = None) -> Executor:
    """Who is to merge, by the name and options of merge(). Starts nothing.

    Raises
        RecipeError: no such executor, or options that do not go together.
    """
    refuse_unknown([name], EXECUTORS, "executor")
    if name != RayExecutor.name and (address or workers):
        raise RecipeError(f"An address and a number of workers are for the executor {RayExecutor.name}. Choose that.")
    if address and workers:
        raise RecipeError("A running cluster has the workers that it has. Leave out the address or their number.")
    if workers is not None and workers < 1:
        raise RecipeError(f"workers: {workers} is no number of processes. Give 1 or more.")
    return LocalExecutor() if name == LocalExecutor.name else RayExecutor(address, workers)


def merge_recipe(
    recipe: Recipe,
    output: Path,
    progress: Callable[[Progress], None] | None = None,
    resume: bool | None = None,
    executor: Executor | None = None,
) -> Report:
    """Carry out a recipe into `output`; executor: by default this process. What it raises as for merge()."""
    steps = save(make_plan(recipe), output, resume, executor)
    try:
        while True:
            step = next(steps)
            if progress is not None:
                progress(step)
    except StopIteration as end:
        report: Report = end.value
        return report
    finally:
        steps.close()


def extract(
    base: str | Path,
    task: str | Path,
    output: str | Path,
    rank: int | float | None = None,
    energy: float | None = None,
    device: str = "auto",
    *,
    dtype: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Write what one fine-tune changed as a LoRA adapter of its base. What that loses stands in the report's warnings.

    rank: at most that many features a layer (a whole number), or that fraction of each layer's full rank (0..1).
    energy: no more features than hold that share (0..1) of the layer's squared change. A full checkpoint needs one of
    the two; see extraction_costs. Raises as merge().
    """
    settings: dict[str, Any] = {"dtype": dtype, "adapter_rank": rank, "adapter_energy": energy, "progress": progress}
    return merge(base, [task], output, "average", device, kind="adapter", **settings)


def extraction_costs(
    base: str | Path, task: str | Path, device: str = "auto", progress: Callable[[Progress], None] | None = None
) -> tuple[RankCost, ...]:
    """What a fine-tune costs as an adapter: energy kept and size at ranks 1, 2, 4, ... Writes nothing.

    Raises
        InputError: base and task do not fit, or no linear layer changes.
    """
    # Energy 1 asks for every feature, which a full checkpoint is otherwise refused.
    recipe = make_recipe(base, _listed([task]), "average", None, {"kind": "adapter", "energy": 1.0}, device)
    return rank_costs(make_plan(recipe), progress)


def check(base: str | Path, tasks: Tasks, roles: Mapping[str, str] | None = None) -> Preflight:
    """Compare base and tasks by their headers. The result's `problems` say why they cannot be merged, `notes` the rest.

    Raises
        CheckpointError: a folder cannot be opened at all.
    """
    return check_recipe(make_recipe(base, _listed(tasks), roles=roles))


def inspect(base: str | Path, tasks: Tasks, layer: str | None = None, method: str = "sftm", **params: Any) -> Survey:
    """Look into one layer (`layer`) or all of them, and predict what a merge would keep; merges and writes nothing.

    Per layer: measures overall and per task, spectra with clusters of equal gains, overlaps, principal angles,
    warnings, and the errors of a merge by `method` with `params` and the tasks' weights (both as in merge). The
    result's to_dict and to_json give plain values.

    Raises
        InputError: base and tasks do not fit, a method or parameter is unknown, or there is no such layer.
        NumericalError: an input holds NaN or Inf.
    """
    return inspect_recipe(make_recipe(base, _listed(tasks), method, params), layer)


def inspect_recipe(recipe: Recipe, layer: str | None = None) -> Survey:
    """The same by a recipe: its method, params, weights, roles and split_fused. Raises as inspect()."""
    from sftm_app.inspection.survey import survey  # which a merge can do without
    from sftm_app.methods.settings import MergeSettings

    found = check_recipe(recipe).require()
    settings = MergeSettings(recipe.method, recipe.params, tuple(task.weight for task in recipe.tasks))
    return survey(found, layer, settings, recipe.split_fused)


def _listed(tasks: Tasks) -> Any:
    if isinstance(tasks, Mapping):
        return [dataclasses.asdict(TaskEntry(str(path), name)) for name, path in tasks.items()]
    # A single path must not be taken for a list of its letters: make_recipe says what is expected.
    return list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else tasks
