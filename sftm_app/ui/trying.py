"""Trying models: which ones are on offer, what they answer, where labelled samples come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.accuracy import AccuracyTable
from sftm_app.evaluation.contestants import BASE, INDIVIDUAL, Contestant, folder_contestant, method_contestant
from sftm_app.evaluation.packs import PackTask, load_samples
from sftm_app.evaluation.samples import Samples, load_labelled_folder
from sftm_app.jobs.folder import list_runs, status
from sftm_app.merging.methods import METHODS
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.style import METHOD_COLOURS, Series
from sftm_app.ui.run_view import recipe_of, same_inputs
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Kind, Safe, hint, join, stat, stats, strong, table
from sftm_app.ui.workspace import Workspace

MAX_RUNS_OFFERED = 5
# Merging in memory blocks the answer to a first try, so it is ticked beforehand only where it takes a moment.
QUICK_MERGE_BYTES = 200_000_000


@dataclass(frozen=True, eq=False)
class Sample:
    """What is being tried: uint8 (height, width) or (height, width, 3), and the right class where it is known."""

    image: NDArray[np.uint8]
    truth: int | None = None


def contestants(studio: Studio, ws: Workspace, run_id: str) -> list[Contestant]:
    """The models on offer: base, individual, every method with its defaults, and this workspace's finished runs."""
    offered = [BASE, INDIVIDUAL, *(method_contestant(name) for name in METHODS)]
    runs: list[Contestant] = []
    for folder in list_runs(studio.settings.runs_dir):
        if len(runs) < MAX_RUNS_OFFERED and same_inputs(folder, ws) and status(folder).state == "done":
            method = recipe_of(folder).method
            mark = (
                "your merge"
                if folder.run_id == run_id
                else f"run of {folder.run_id[9:11]}:{folder.run_id[11:13]}:{folder.run_id[13:15]}"
            )
            runs.append(folder_contestant(folder.model, f"{METHODS[method].title}, {mark}", method))
    return offered + runs


def chosen_contestants(studio: Studio, ws: Workspace, run_id: str, keys: list[str]) -> list[Contestant]:
    """The contestants of these keys. Keys come from the browser: only those on offer count.

    Raises
        InputError: none is chosen.
    """
    found = [contestant for contestant in contestants(studio, ws, run_id) if contestant.key in keys]
    if not found:
        raise InputError("No model is chosen. Tick at least one under Models.")
    return found


def offer(studio: Studio, ws: Workspace, run_id: str, ticked: list[str], before: list[str]) -> tuple[Any, list[str]]:
    """The models to choose from, and their keys. What was ticked stays; a merge that is new among them is ticked.

    `before`: the keys of the last offer to this page; empty for the first one, which ticks what is worth comparing.
    """
    if not studio.usable(ws):
        return gr.update(choices=[], value=[]), []
    found = contestants(studio, ws, run_id)
    keys = [contestant.key for contestant in found]
    merges = [key for key in keys if key.startswith("folder:")]
    if before:
        new = [key for key in merges if key not in before][:1]
        # A real merge takes the place of the one in memory that stood in for it.
        value = [key for key in ticked if key in keys and not (new and key == "method:sftm")] + new
    else:
        quick = ["method:average", *([] if merges else ["method:sftm"])] if _merges_quickly(studio, ws) else []
        value = [BASE.key, INDIVIDUAL.key, *quick, *merges[:1]]
    return gr.update(choices=[(contestant.title, contestant.key) for contestant in found], value=value), keys


def _merges_quickly(studio: Studio, ws: Workspace) -> bool:
    return sum(task.checkpoint.n_bytes for task in studio.preflight(ws).tasks) <= QUICK_MERGE_BYTES


def answer(studio: Studio, ws: Workspace, task: str, sample: Sample, models: list[Contestant]) -> tuple[Safe, Any]:
    """Each model's answer for one sample: a card of verdicts, and the probabilities as a figure."""
    arena = studio.arena(ws)
    series, verdicts = [], []
    labels: tuple[str, ...] = ()
    for contestant in models:
        classifier = arena.classifier(contestant, task)
        labels = classifier.labels
        found = classifier.probabilities(sample.image[None])[0]
        best = int(found.argmax())
        tone: Kind | None = None if sample.truth is None else "ok" if best == sample.truth else "error"
        series.append(Series(contestant.title, [float(p) for p in found], METHOD_COLOURS.get(contestant.kind)))
        verdicts.append(stat(contestant.title, labels[best], f"{found[best]:.0%} sure", tone))
    truth = sample.truth if sample.truth is not None and sample.truth < len(labels) else None
    said = f"The right answer is {labels[truth]}." if truth is not None else "What each model reads:"
    return join([hint(said), stats(verdicts)]), probabilities(labels, series, truth)


def table_html(measured: AccuracyTable, caption: str = "") -> Safe:
    """Tasks x models in percent, the best merge of each row in bold; the mean, and the mean relative to individual."""
    merges = [i for i, c in enumerate(measured.contestants) if c.key not in (BASE.key, INDIVIDUAL.key)]

    def cells(values: list[float | None]) -> list[object]:
        best = max((value for i in merges if (value := values[i]) is not None), default=None)
        shown: list[object] = []
        for i, value in enumerate(values):
            text = "·" if value is None else f"{value:.1%}"
            shown.append(strong(text) if i in merges and value is not None and value == best else text)
        return shown

    n = range(len(measured.contestants))
    rows: list[list[object]] = [
        [task, *cells(list(line))] for task, line in zip(measured.tasks, measured.values, strict=True)
    ]
    rows.append([strong("Mean"), *cells([measured.mean(i) for i in n])])
    if any(c.key == INDIVIDUAL.key for c in measured.contestants):
        rows.append([strong("Relative to individual"), *cells([measured.normalised(i) for i in n])])
    names = ["task", *(contestant.title for contestant in measured.contestants)]
    return table(names, rows, numeric=range(1, len(names)), caption=caption)


def samples_of(studio: Studio, ws: Workspace, task: str, folder: str) -> Samples:
    """The labelled samples of a task: the demo pack's, or those of a folder that the person names.

    Raises
        SampleError, InputError: there are none.
    """
    if task not in ws.task_names:
        raise InputError(f"There is no task {task!r}. Choose one of {', '.join(ws.task_names)}.")
    pack = studio.pack(ws)
    if pack and not folder.strip():
        return load_samples(_pack_task(pack.tasks, ws, task))
    if not folder.strip():
        raise SampleError(
            "There are no labelled samples for these models. Name a folder under Labelled images: one subfolder per "
            "task, in it one subfolder of images per class."
        )
    root = allowed(studio.settings, folder)
    inner = root
    if any((root / name).is_dir() for name in ws.task_names):
        inner = root / task
        if not inner.is_dir():
            raise SampleError(f"{root}: has no folder {task!r}, so this task is left out.")
    source = studio.preflight(ws).tasks[ws.task_names.index(task)]
    return load_labelled_folder(inner, source.checkpoint.id2label, channels_of(studio, ws, task))


def all_samples(studio: Studio, ws: Workspace, folder: str) -> tuple[dict[str, Samples], list[str]]:
    """The labelled samples of every task that has some, and why the others have none.

    Raises
        SampleError, InputError: no task has any.
    """
    found, problems = {}, []
    for task in ws.task_names:
        try:
            found[task] = samples_of(studio, ws, task, folder)
        except SampleError as error:
            problems.append(str(error))
    if not found:
        raise SampleError(problems[0])
    return found, problems


def channels_of(studio: Studio, ws: Workspace, task: str) -> int:
    """How many colour channels a task's model reads: 1 or 3."""
    config = studio.preflight(ws).tasks[ws.task_names.index(task)].checkpoint.config
    return 1 if config.get("num_channels") == 1 else 3


def _pack_task(tasks: tuple[PackTask, ...], ws: Workspace, name: str) -> PackTask:
    path = Path(next(task.path for task in ws.tasks if task.name == name))
    for task in tasks:
        if task.path.resolve() == path.resolve():
            return task
    raise SampleError(f"{name}: the demo has no samples for this task. Choose another task.")
