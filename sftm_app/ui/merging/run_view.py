"""What a run looks like: progress, result, preservation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftm_app.errors import SFTMError
from sftm_app.evaluation.packs import pack_of
from sftm_app.jobs.folder import RunFolder
from sftm_app.jobs.status import RunStatus, status
from sftm_app.methods import METHODS
from sftm_app.methods.params import make_params
from sftm_app.output.report import Machine, Report
from sftm_app.planning.recipe import Recipe
from sftm_app.plots.preservation import ErrorSeries, preservation
from sftm_app.plots.style import method_colour
from sftm_app.ui.naming import distinct_names
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Html, code, details, hint, join, notice, progress, stack, stat, stats
from sftm_app.ui.wording import BASELINE, ERRORS_HELP, params_in_words
from sftm_app.units import format_bytes, format_count, format_duration
from sftm_app.weights.hub_names import short_name

STATES = {
    "starting": "starting",
    "running": "merging",
    "done": "done",
    "failed": "failed",
    "cancelled": "cancelled",
    "died": "stopped unexpectedly",
}
UNREADABLE = "unreadable recipe"
MEDIANS = "The figures are medians over the layers."
NOT_MEASURED = "What the merge keeps of each task was not measured."
WHERE_ACCURACY = "To see that, compare methods below, or try the model on the Evaluate tab."


def progress_html(now: RunStatus) -> Html:
    """A bar while it runs, a sentence if it ended badly."""
    if now.state == "failed":
        kept = "finished tensors are kept" if now.resumable else "nothing was written"
        return notice("error", f"The merge failed; {kept}", items=now.message.split("\n"))
    if now.state == "died":
        return notice("error", "The merge stopped unexpectedly", now.message)
    if now.state == "cancelled":
        kept = "Finished tensors are kept, so you can resume it" if now.resumable else "Nothing was written"
        return notice("warning", "The merge was cancelled", f"{kept}.")
    if now.state == "starting" or (now.state == "running" and not now.total):
        return progress(None, "Reading the checkpoints", "")
    if now.state == "done":
        return progress(now.fraction, f"All {now.total} tensors merged", kind="ok")
    left = f" · {format_duration(now.remaining_s)} left" if now.remaining_s is not None else ""
    return progress(now.fraction, now.message, f"{now.done} of {now.total}{left}")


def result_html(report: Report) -> Html:
    """What a finished run took, and its warnings."""
    method = METHODS[report.method]
    words = params_in_words(make_params(method.params, report.recipe["params"], "report"))
    machine = report.machine
    figures = [
        stat("Method", method.title, ", ".join(words) or "no parameters"),
        stat("Time", f"{report.seconds:.1f} s", _device_and_estimate(machine)),
        stat(
            "Memory",
            format_bytes(machine.memory_peak_bytes),
            f"{format_bytes(machine.memory_predicted_bytes)} expected",
        ),
    ]
    base, *tasks = (entry.name if entry.weight is not None else short_name(entry.path) for entry in report.inputs)
    listed = " and ".join([", ".join(tasks[:-1]), tasks[-1]]) if len(tasks) > 1 else tasks[0]
    merged = hint(join([f"Merged {listed} (base: ", code(base), ")."]))
    warnings = [notice("warning", "Warnings", items=report.warnings)] if report.warnings else []
    lines = stack(*map(hint, report.account))
    account = [details("What became of the tasks' tensors", lines)] if report.account else []
    return stack(merged, stats(figures), *warnings, *account)


def errors_html(report: Report) -> Html:
    """How well the singular features were kept, for those who look into layers; it does not predict accuracy."""
    figures = []
    for title, errors, plain in (
        ("Readout error", report.readout_errors, report.average_readout_errors),
        ("Mapping error", report.mapping_errors, report.average_mapping_errors),
    ):
        if errors:
            compared = f"; {METHODS[BASELINE].title.lower()} {max(plain.values()):.2g}" if plain else ""
            figures.append(stat(title, f"{max(errors.values()):.2g}", f"worst task{compared}"))
    residuals = [record.figures.residual for record in report.tensors if record.figures.residual is not None]
    if residuals:
        figures.append(stat("Residual", f"{max(residuals):.1e}", f"the largest of {len(residuals)} linear systems"))
    words = f"{MEDIANS} {ERRORS_HELP} {WHERE_ACCURACY}" if report.readout_errors else NOT_MEASURED
    return stack(stats(figures) if figures else "", hint(words))


def _device_and_estimate(machine: Machine) -> str:
    predicted, device = machine.seconds_predicted, f"on {machine.device}"
    return device if predicted is None else f"{device}, {format_duration(predicted)} expected"


def result_plot(report: Report) -> Any:
    """Readout and mapping error per task, next to those of the baseline; None if no error was measured."""
    if not report.readout_errors:
        return None
    tasks = list(report.readout_errors)

    def series(method: str, readout: Mapping[str, float], mapping: Mapping[str, float]) -> ErrorSeries:
        errors = ([found[task] for task in tasks] if found else [] for found in (readout, mapping))
        return ErrorSeries(METHODS[method].title, method_colour(method), *errors)

    merges = [series(report.method, report.readout_errors, report.mapping_errors)]
    if report.average_readout_errors:
        merges.append(series(BASELINE, report.average_readout_errors, report.average_mapping_errors))
    return preservation(tasks, merges)


def run_labels(studio: Studio, runs: Sequence[RunFolder]) -> dict[str, str]:
    """One line for each run, by its id and in the order given: settings, models, how it ended.

    runs: newest first.
    """
    recipes: dict[str, Recipe] = {}
    for run in runs:
        with contextlib.suppress(SFTMError):
            recipes[run.run_id] = studio.recipe(run)
    oldest_first = list(recipes)[::-1]
    names: dict[str, str] = {}
    for models in dict.fromkeys(_models_name(studio, recipe) for recipe in recipes.values()):
        same = [run_id for run_id in oldest_first if _models_name(studio, recipes[run_id]) == models]
        for run_id, name in zip(same, distinct_names([recipes[run_id] for run_id in same]), strict=True):
            names[run_id] = f"{name} · {models}"
    return {run.run_id: f"{names.get(run.run_id, UNREADABLE)} · {STATES[status(run).state]}" for run in runs}


def _models_name(studio: Studio, recipe: Recipe) -> str:
    pack = pack_of(Path(recipe.base), list(studio.packs))
    return f"{pack.name if pack else short_name(recipe.base)}, {format_count(len(recipe.tasks), 'task')}"
