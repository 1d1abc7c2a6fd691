"""SFTM Studio from Python: check, inspect, merge, extract, search, pick_scaling."""

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
from sftm_app.pipeline import prepare
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import DEFAULT_METHOD, Recipe, TaskEntry, absolute, make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session, open_session

if TYPE_CHECKING:
    from sftm_app.evaluation.samples import Samples
    from sftm_app.inspection.survey import Survey
    from sftm_app.tuning.headless import ScalingResult, SearchResult
    from sftm_app.tuning.search import Search
    from sftm_app.tuning.unlabelled import TriedScaling

EXECUTORS = (LocalExecutor.name, RayExecutor.name)

Tasks = Sequence[str | Path | Mapping[str, Any]] | Mapping[str, str | Path]


def merge(
    base: str | Path,
    tasks: Tasks,
    output: str | Path,
    method: str = DEFAULT_METHOD,
    device: str = "auto",
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    roles: Mapping[str, str] | None = None,
    split_fused: bool = False,
    memory: str | None = None,
    measure: str = "auto",
    tokenizer: str | None = None,
    kind: str = "model",
    adapter_rank: int | float | None = None,
    adapter_energy: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume: bool | None = None,
    replace: bool = False,
    executor: str = "local",
    address: str | None = None,
    workers: int | None = None,
    session: Session | None = None,
    **params: Any,
) -> Report:
    """Merge task checkpoints into their base and write the folder `output`, which `from_pretrained` loads.

    Args:
        base: the checkpoint that the tasks were fine-tuned from.
        tasks: checkpoint folders; or entries {"path": ..., "name": ..., "weight": ...}; or a mapping name -> folder.
        output: a folder that does not exist yet.
        method: the name of a merge method; `sftm_app.methods.METHODS` has them all.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: the dtype written, or None for the base's.
        max_shard_size: the largest size of a weight file.
        roles: what tensors are, by patterns of their names, where the architecture or a guess says otherwise.
        split_fused: merge query, key and value (or gate and up) one by one where one matrix holds them.
        memory: a size such as "4GB": a merge that needs more does not begin; on a GPU, layers that need more go to the
            CPU.
        measure: the layers on which to measure what each task keeps: "all", "none" or "auto".
        tokenizer: whose tokenizer the merged model has, where those of base and tasks differ: "base", "union" (all
            tokens) or "task NAME". None takes the union where no row means different tokens, and refuses otherwise.
        kind: "model", or "adapter" for one LoRA adapter, which PEFT loads.
        adapter_rank, adapter_energy: what an adapter keeps; see `extract`.
        progress: called after each tensor and once before the last step.
        resume: if a killed merge left finished tensors, True continues it (with the same result as if it had never been
            stopped), False throws them away, None refuses. If there are none, all three are the same.
        replace: if `output` is a merged model of this app, the new one takes its place once it is complete.
        executor: "local" merges in this process, "ray" by the workers of a Ray cluster, with the same result.
        address, workers: of the Ray cluster: "auto" or HOST:PORT; or how many processes to start here for this merge.
        session: what this process may use; by default what the environment says.
        **params: parameters of the method.

    Raises:
        InputError: inputs, parameters or output cannot be used, or what was left there was made from something else.
            Nothing was computed or written.
        NumericalError, ResourceError: the merge failed. Nothing is left behind.
    """
    target: dict[str, Any] = {"path": str(output), "dtype": dtype, "max_shard_size": max_shard_size, "kind": kind}
    target |= {"rank": adapter_rank, "energy": adapter_energy}
    settings: dict[str, Any] = {"device": device, "roles": roles, "split_fused": split_fused, "memory": memory}
    settings |= {"measure": measure, "tokenizer": tokenizer}
    recipe = make_recipe(base, _listed(tasks), method, params, target, **settings)
    by = get_executor(executor, address, workers)
    # The recipe is saved next to the model, where relative paths would mean something else.
    recipe = absolute(recipe)
    target_folder = Path(os.path.expanduser(output))
    return merge_recipe(recipe, target_folder, session or open_session(), progress, resume, by, replace)


def get_executor(name: str, address: str | None = None, workers: int | None = None) -> Executor:
    """Who is to merge, by the name and options of `merge`. Starts nothing.

    Raises:
        RecipeError: there is no such executor, or the options do not go together.
    """
    refuse_unknown([name], EXECUTORS, "executor")
    if name != RayExecutor.name and (address or workers):
        raise RecipeError(f"An address and a number of workers are for the executor {RayExecutor.name}. Choose that.")
    if address and workers:
        raise RecipeError("A running cluster has its own workers. Leave out the address or the number of workers.")
    if workers is not None and workers < 1:
        raise RecipeError(f"workers: {workers} is not a number of processes. Give 1 or more.")
    return LocalExecutor() if name == LocalExecutor.name else RayExecutor(address, workers)


def merge_recipe(
    recipe: Recipe,
    output: Path,
    session: Session,
    progress: Callable[[Progress], None] | None = None,
    resume: bool | None = None,
    executor: Executor | None = None,
    replace: bool = False,
) -> Report:
    """Carry out a recipe into `output`. Arguments and errors as for `merge`."""
    steps = save(prepare(recipe, session), session, output, resume, executor, replace)
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
    session: Session | None = None,
) -> Report:
    """Write what one fine-tune changed as a LoRA adapter of its base. The report's warnings say what that loses.

    Args:
        base, task, output, device, dtype, progress, session: as for `merge`.
        rank: features per layer at most: a count, or a fraction of each layer's full rank (0..1).
        energy: keep no more features than hold that share (0..1) of each layer's squared change. A full checkpoint
            needs `rank` or `energy`; see `extraction_costs`.

    Raises:
        InputError, NumericalError, ResourceError: as for `merge`.
    """
    # With one task every method gives the task itself; the plain average does so without a system to solve.
    settings: dict[str, Any] = {"dtype": dtype, "adapter_rank": rank, "adapter_energy": energy, "progress": progress}
    return merge(base, [task], output, "average", device, kind="adapter", measure="none", session=session, **settings)


def extraction_costs(
    base: str | Path,
    task: str | Path,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    session: Session | None = None,
) -> tuple[RankCost, ...]:
    """What a fine-tune costs as an adapter: energy kept and size at ranks 1, 2, 4, ... Writes nothing.

    Raises:
        InputError: base and task do not fit together, or no linear layer changes.
    """
    session = session or open_session()
    # Energy 1 asks for every feature, which a full checkpoint is otherwise refused.
    target = {"kind": "adapter", "energy": 1.0}
    recipe = make_recipe(base, _listed([task]), "average", None, target, device, measure="none")
    return rank_costs(prepare(recipe, session), session, progress)


def check(
    base: str | Path,
    tasks: Tasks,
    roles: Mapping[str, str] | None = None,
    session: Session | None = None,
    tokenizer: str | None = None,
) -> Preflight:
    """Compare base and tasks by their headers.

    Returns:
        The comparison. Its `problems` say why they cannot be merged, its `notes` what else is worth knowing.

    Raises:
        CheckpointError: a folder cannot be opened at all.
    """
    recipe = make_recipe(base, _listed(tasks), roles=roles, tokenizer=tokenizer)
    return open_inputs(recipe, session or open_session())


def inspect(
    base: str | Path,
    tasks: Tasks,
    layer: str | None = None,
    method: str = DEFAULT_METHOD,
    session: Session | None = None,
    **params: Any,
) -> Survey:
    """Look into one layer, or all of them, and predict what a merge would keep. Merges and writes nothing.

    Args:
        base, tasks: as for `merge`.
        layer: a layer's name, or None for all.
        method, params: of the merge to predict, with the tasks' weights.
        session: as for `merge`.

    Returns:
        Per layer: measures overall and per task, spectra with clusters of equal gains, overlaps, principal angles,
        warnings, and the errors of the merge. Its to_dict and to_json give plain values.

    Raises:
        InputError: base and tasks do not fit together, a method or parameter is unknown, or there is no such layer.
        NumericalError: an input holds NaN or Inf.
    """
    return inspect_recipe(make_recipe(base, _listed(tasks), method, params), session or open_session(), layer)


def inspect_recipe(recipe: Recipe, session: Session, layer: str | None = None) -> Survey:
    """The same by a recipe: its method, params, weights, roles and split_fused. Raises as `inspect`."""
    from sftm_app.inspection.survey import survey  # a merge starts faster without it
    from sftm_app.methods.settings import MergeSettings

    found = open_inputs(recipe, session).require()
    settings = MergeSettings(recipe.method, recipe.params, tuple(task.weight for task in recipe.tasks))
    return survey(found, layer, settings, recipe.split_fused, session.cache, session.n_threads)


def search(
    base: str | Path,
    tasks: Tasks,
    samples: str | Path | Mapping[str, Samples],
    trials: int = 50,
    minutes: float | None = None,
    *,
    methods: Sequence[str] = (),
    weights: bool = True,
    limit: int | None = 100,
    folder: str | Path = "sftm-output",
    progress: Callable[[Search], None] | None = None,
    session: Session | None = None,
) -> SearchResult:
    """Search for the best merge on labelled samples: method, its settings, and one weight per task.

    Half of each task's samples choose; the other half say how good the best is. The trials are kept in `folder`, so
    the same call goes on with a search that was interrupted, and does not repeat one that was not.

    Args:
        base, tasks: as for `merge`.
        samples: a folder or file of labelled samples as the Evaluate tab takes it, a demo pack's folder, or samples by
            task.
        trials: how many merges to try, those of an interrupted search included.
        minutes: ends sooner, if given.
        methods: names of METHODS; by default all that merge this number of tasks.
        weights: whether one weight per task is searched too.
        limit: samples of a task to choose on at most, and as many to report on; None for all.
        folder: the output folder. The same as the app's is the same search as the app's.
        progress: called after every step.
        session: as for `merge`.

    Returns:
        The best settings as a recipe, and what base, own models, the plain average, the default and the best answer to
        the test samples, with 95 % intervals.

    Raises:
        InputError: inputs or samples cannot be used.
    """
    recipe = absolute(make_recipe(base, _listed(tasks)))
    place = Path(os.path.expanduser(folder))
    return search_recipe(
        recipe, samples, session or open_session(), trials, minutes, methods, weights, limit, place, progress
    )


def search_recipe(
    recipe: Recipe,
    samples: str | Path | Mapping[str, Samples],
    session: Session,
    trials: int = 50,
    minutes: float | None = None,
    methods: Sequence[str] = (),
    weights: bool = True,
    limit: int | None = 100,
    folder: Path = Path("sftm-output"),
    progress: Callable[[Search], None] | None = None,
) -> SearchResult:
    """The same by a recipe, whose settings are tried first. Arguments and errors as for `search`."""
    from sftm_app.tuning.headless import run_search, setup_search  # a merge starts faster without it
    from sftm_app.tuning.search import Budget
    from sftm_app.tuning.setup import SEARCHES_NAME

    if trials < 1:
        raise RecipeError(f"trials: {trials} is not a number of merges to try. Give 1 or more.")
    searches = folder.absolute() / SEARCHES_NAME
    setup, left_out = setup_search(recipe, samples, session, searches, methods, weights, limit)
    return run_search(recipe, setup, Budget(trials, minutes), left_out, progress)


def pick_scaling(
    base: str | Path,
    tasks: Tasks,
    inputs: str | Path | Mapping[str, Samples],
    method: str = DEFAULT_METHOD,
    *,
    scalings: Sequence[float] = (),
    progress: Callable[[TriedScaling], None] | None = None,
    session: Session | None = None,
    **params: Any,
) -> ScalingResult:
    """Pick the scaling of a merge without labels: where it agrees most with each task's own model.

    Args:
        base, tasks: as for `merge`.
        inputs: 16 to 64 inputs a task: a folder with `TASK.txt` (one text a line) or a folder `TASK` of images;
            labelled samples, whose labels are not looked at; or samples by task.
        method: one with a scaling.
        scalings: those to try; by default 0.2 to 1.4.
        progress: called after each scaling.
        session: as for `merge`.
        **params: the method's other parameters.

    Returns:
        The scaling, and how far the merge is from the tasks' own models at each.

    Raises:
        InputError: inputs cannot be used, or the method has no scaling.
    """
    from sftm_app.tuning.headless import run_scalings  # a merge starts faster without it

    recipe = absolute(make_recipe(base, _listed(tasks), method, params), Path.cwd())
    return run_scalings(recipe, inputs, session or open_session(), scalings, progress)


def _listed(tasks: Tasks) -> Any:
    if isinstance(tasks, Mapping):
        return [dataclasses.asdict(TaskEntry(str(path), name)) for name, path in tasks.items()]
    # A single path must not be taken for a list of its letters: make_recipe says what is expected.
    return list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else tasks
