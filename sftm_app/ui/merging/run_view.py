"""What a run looks like: progress, result, preservation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from sftm_app.errors import SFTMError
from sftm_app.jobs.folder import RunFolder, RunStatus, status
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.output.report import Report, load_report
from sftm_app.planning.recipe import Recipe
from sftm_app.plots.preservation import preservation
from sftm_app.ui.rank_slider import rank_shown
from sftm_app.ui.widgets.html import Safe, code, hint, join, notice, progress, stack, stat, stats
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_bytes, format_duration
from sftm_app.weights.hub_names import short_name

WORDS = {
    "starting": "Starting",
    "running": "Merging",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "died": "Stopped unexpectedly",
}


_READING = (
    "Readout error: how far the merged model misses the gains of a task's own features. Mapping error: the same with "
    "what the other tasks' features write on top. The readout variant makes the first vanish and lets the second grow; "
    "which matters more shows on samples, on the Evaluate tab."
)


def progress_html(now: RunStatus) -> Safe:
    """A bar while it runs, a sentence when it ended badly."""
    if now.state == "failed":
        kept = "what it finished is kept" if now.resumable else "nothing was written"
        return notice("error", f"The merge failed, {kept}", items=now.message.split("\n"))
    if now.state == "died":
        return notice("error", "The merge stopped unexpectedly", now.message)
    if now.state == "cancelled":
        left = "What it finished is kept: resume it" if now.resumable else "Nothing was written. Start it again"
        return notice("warning", "The merge was cancelled", f"{left} whenever you like.")
    if now.state == "starting" or (now.state == "running" and not now.total):
        return progress(None, "Reading the checkpoints", "")
    if now.state == "done":
        return progress(now.fraction, f"All {now.total} tensors merged", kind="ok")
    left = f" · {format_duration(now.remaining_s)} left" if now.remaining_s is not None else ""
    return progress(now.fraction, now.message, f"{now.done} of {now.total}{left}")


def read_report(folder: RunFolder) -> Report:
    """The report of a finished run.

    Raises
        CheckpointError: it cannot be read.
    """
    return _read_report(folder.report, folder.report.stat().st_mtime_ns if folder.report.exists() else 0)


@lru_cache(maxsize=16)
def _read_report(path: Path, mtime_ns: int) -> Report:
    return load_report(path)


def result_html(folder: RunFolder) -> Safe:
    """The figures of a finished run, and its warnings."""
    report = read_report(folder)
    readout, mapping = report.readout_errors, report.mapping_errors
    solved = [record.figures for record in report.tensors if "residual" in record.figures]
    took, expected = report.machine["memory_peak_bytes"], report.machine["memory_predicted_bytes"]
    settings = _params(report.method, report.recipe["params"])
    figures = [
        stat("Method", METHODS[report.method].title, ", ".join(settings) or "no parameters"),
        stat("Time", f"{report.seconds:.1f} s", _expected(report)),
        stat("Memory", format_bytes(took), f"{format_bytes(expected)} expected"),
    ]
    if readout:
        worst = max(readout, key=lambda task: readout[task])
        average = max(report.medians("average_readout_errors").values())
        figures.append(stat("Readout error", f"{readout[worst]:.2g}", f"worst task; plain average {average:.2g}"))
        others = max(report.medians("average_mapping_errors").values())
        figures.append(stat("Mapping error", f"{max(mapping.values()):.2g}", f"worst task; plain average {others:.2g}"))
    if solved:
        residual = max(figure["residual"] for figure in solved)
        figures.append(stat("Residual", f"{residual:.1e}", f"how exactly {len(solved)} systems were solved"))
    base, *tasks = (entry.name if entry.weight is not None else short_name(entry.path) for entry in report.inputs)
    merged = hint(join([", ".join(tasks), " merged into ", code(base)]))
    warnings = [notice("warning", "Worth knowing", items=report.warnings)] if report.warnings else []
    return stack(merged, stats(figures), *warnings, hint(_READING) if readout else "")


def _expected(report: Report) -> str:
    predicted, device = report.machine.get("seconds_predicted"), f"on {report.machine['device']}"
    return device if predicted is None else f"{device}, {format_duration(predicted)} expected"


def _params(method: str, params: Mapping[str, Any]) -> list[str]:
    """A method's parameters in words: "rank 25%", "scaling 0.8"."""
    ranks = {name for name, control in controls(METHODS[method].params).items() if control.kind == "rank"}
    shown = {name: rank_shown(value) if name in ranks else value for name, value in params.items()}
    return [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()]


def result_plot(folder: RunFolder) -> Any:
    """Readout and mapping error per task, beside those of the plain average; None when nothing was superposed."""
    report = read_report(folder)
    if not report.readout_errors:
        return None
    tasks = list(report.readout_errors)
    titles = {report.method: METHODS[report.method].title, "average": METHODS["average"].title}

    def both(figure: str) -> dict[str, list[float | None]]:
        sources = {report.method: report.medians(figure), "average": report.medians(f"average_{figure}")}
        return {name: [found[task] for task in tasks] for name, found in sources.items() if found}

    return preservation(tasks, both("readout_errors"), both("mapping_errors"), titles)


@lru_cache(maxsize=256)
def recipe_of(folder: RunFolder) -> Recipe:
    """A run's recipe, which never changes. Raises RecipeError when it cannot be read."""
    return folder.recipe()


def same_inputs(folder: RunFolder, ws: Workspace) -> bool:
    """Whether a run merged this workspace's checkpoints; False for a run whose recipe cannot be read."""
    try:
        recipe = recipe_of(folder)
    except SFTMError:
        return False
    return (recipe.base, *(task.path for task in recipe.tasks)) == ws.inputs


def run_label(folder: RunFolder) -> str:
    """One line for the list of runs: when, what, with which settings other than the usual ones, how it ended."""
    when = time.strftime("%d %b %H:%M:%S", time.strptime(folder.run_id[:15], "%Y%m%d-%H%M%S"))
    try:
        recipe = recipe_of(folder)
    except SFTMError:
        return f"{when} · unreadable recipe"
    what = ", ".join([METHODS[recipe.method].title, *_unusual(recipe), f"{len(recipe.tasks)} tasks"])
    return f"{when} · {what} · {WORDS[status(folder).state].lower()}"


def _unusual(recipe: Recipe) -> list[str]:
    """The settings of a recipe that are not the usual ones and change what comes out, in a few words each."""
    usual, output = asdict(type(recipe.params)()), recipe.output
    params = {name: value for name, value in asdict(recipe.params).items() if value != usual[name]}
    said = _params(recipe.method, params)
    weights = [f"{task.name} weight {task.weight:g}" for task in recipe.tasks if task.weight != 1]
    said += weights if len(weights) <= 2 else [f"{len(weights)} weights"]
    said += ["fused maps apart"] if recipe.split_fused else []
    said += ["roles set"] if recipe.roles else []
    if output.kind == "adapter":
        said.append("adapter" if output.rank is None else f"adapter of rank {rank_shown(output.rank)}")
    said += [f"{100 * output.energy:g}% of the change"] if output.energy is not None else []
    return [*said, *([output.dtype] if output.dtype else [])]
