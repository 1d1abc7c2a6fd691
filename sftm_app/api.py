"""SFTM Studio from Python: check, inspect, merge."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.inspection.survey import Survey, survey
from sftm_app.merging.plan import check_recipe, make_plan
from sftm_app.merging.recipe import Recipe, TaskEntry, absolute, make_recipe
from sftm_app.merging.report import Report
from sftm_app.merging.save import Progress, save

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
    progress: Callable[[Progress], None] | None = None,
    **params: Any,
) -> Report:
    """Merge task checkpoints into their base and write the folder `output`, which `from_pretrained` loads.

    tasks: checkpoint folders; or entries {"path": ..., "name": ..., "weight": ...}; or a mapping name -> folder.
    method: "sftm" (params variant, rank, scaling), "average" or "task_arithmetic" (scaling).
    device: "auto", "cpu", "cuda" or "mps". dtype: the type written, None for the base's.
    progress: called after each tensor and once before the last step.

    Raises
        InputError: inputs, parameters or output cannot be used; nothing was computed or written.
        NumericalError, ResourceError: the merge failed on the way; nothing is left behind.
    """
    target = {"path": str(output), "dtype": dtype, "max_shard_size": max_shard_size}
    recipe = make_recipe(base, _listed(tasks), method, params, target, device)
    # The recipe is saved beside the model, where relative paths would mean something else.
    return merge_recipe(absolute(recipe, Path.cwd()), Path(os.path.expanduser(output)), progress)


def merge_recipe(recipe: Recipe, output: Path, progress: Callable[[Progress], None] | None = None) -> Report:
    """Carry out a recipe into `output`. Raises as merge()."""
    steps = save(make_plan(recipe), output)
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


def check(base: str | Path, tasks: Tasks) -> Preflight:
    """Compare base and tasks by their headers. The result's `problems` say why they cannot be merged, `notes` the rest.

    Raises
        CheckpointError: a folder cannot be opened at all.
    """
    return check_recipe(make_recipe(base, _listed(tasks)))


def inspect(base: str | Path, tasks: Tasks, layer: str | None = None) -> Survey:
    """The measures of every layer, and the spectra and overlaps of one (`layer`) or of all of them.

    Raises
        InputError: base and tasks do not fit, or there is no such layer.
    """
    return survey(check(base, tasks).require(), layer)


def _listed(tasks: Tasks) -> Any:
    if isinstance(tasks, Mapping):
        return [dataclasses.asdict(TaskEntry(str(path), name)) for name, path in tasks.items()]
    # A single path must not be taken for a list of its letters: make_recipe says what is expected.
    return list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else tasks
