"""Trying models: which ones are on offer, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from sftm_app.errors import InputError
from sftm_app.evaluation.accuracy import AccuracyTable
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, folder_candidate, method_candidate
from sftm_app.evaluation.family import Answer, Family, Samples
from sftm_app.jobs.folder import list_runs, status
from sftm_app.methods import METHODS
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.style import METHOD_COLOURS, Series
from sftm_app.ui.merging.run_view import recipe_of, same_inputs
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Kind, Safe, card, cards, chip, hint, join, stat, stats, strong, table
from sftm_app.ui.workspace import Workspace

MAX_RUNS_OFFERED = 5
# Merging in memory blocks the answer to a first try, so it is ticked beforehand only where it takes a moment.
QUICK_MERGE_BYTES = 200_000_000


def candidates(studio: Studio, ws: Workspace, run_id: str) -> list[Candidate]:
    """The models on offer: base, individual, every method with its defaults, and this workspace's finished runs."""
    offered = [BASE, INDIVIDUAL, *(method_candidate(name) for name in METHODS)]
    runs: list[Candidate] = []
    for folder in list_runs(studio.settings.runs_dir):
        if len(runs) < MAX_RUNS_OFFERED and same_inputs(folder, ws) and status(folder).state == "done":
            method = recipe_of(folder).method
            mark = (
                "your merge"
                if folder.run_id == run_id
                else f"run of {folder.run_id[9:11]}:{folder.run_id[11:13]}:{folder.run_id[13:15]}"
            )
            runs.append(folder_candidate(folder.model, f"{METHODS[method].title}, {mark}", method))
    return offered + runs


def chosen_candidates(studio: Studio, ws: Workspace, run_id: str, keys: list[str]) -> list[Candidate]:
    """The candidates of these keys. Keys come from the browser: only those on offer count.

    Raises
        InputError: none is chosen.
    """
    found = [candidate for candidate in candidates(studio, ws, run_id) if candidate.key in keys]
    if not found:
        raise InputError("No model is chosen. Tick at least one under Models.")
    return found


def offer(studio: Studio, ws: Workspace, run_id: str, ticked: list[str], before: list[str]) -> tuple[Any, list[str]]:
    """The models to choose from, and their keys. What was ticked stays; a merge that is new among them is ticked.

    `before`: the keys of the last offer to this page; empty for the first one, which ticks what is worth comparing.
    """
    if not studio.usable(ws):
        return gr.update(choices=[], value=[]), []
    found = candidates(studio, ws, run_id)
    keys = [candidate.key for candidate in found]
    merges = [key for key in keys if key.startswith("folder:")]
    if before:
        new = [key for key in merges if key not in before][:1]
        # A real merge takes the place of the one in memory that stood in for it.
        value = [key for key in ticked if key in keys and not (new and key == "method:sftm")] + new
    else:
        quick = ["method:average", *([] if merges else ["method:sftm"])] if merges_quickly(studio, ws) else []
        value = [BASE.key, INDIVIDUAL.key, *quick, *merges[:1]]
    return gr.update(choices=[(candidate.title, candidate.key) for candidate in found], value=value), keys


def merges_quickly(studio: Studio, ws: Workspace) -> bool:
    """Whether a merge in memory takes a moment only."""
    return sum(task.checkpoint.n_bytes for task in studio.preflight(ws).tasks) <= QUICK_MERGE_BYTES


def answers(
    studio: Studio, ws: Workspace, task: str, sample: Samples, models: list[Candidate]
) -> Iterator[tuple[Safe, Any]]:
    """What each model says to one sample, after each model: a card of verdicts, and the scores as a figure.

    The figure is None where models write freely.
    """
    model_pool = studio.model_pool(ws)
    family = model_pool.family(task)
    said: list[Answer] = []
    for candidate in models:
        said += model_pool.model(candidate, task).answer(sample)
        yield verdicts(family, models, said), scores(family, models, said)


def answer(studio: Studio, ws: Workspace, task: str, sample: Samples, models: list[Candidate]) -> tuple[Safe, Any]:
    """The last of answers(): what all the models say."""
    return list(answers(studio, ws, task, sample, models))[-1]


def verdicts(family: Family, models: Sequence[Candidate], said: Sequence[Answer]) -> Safe:
    """A card for each model, of those that have answered with what they say."""
    truth = next((one.truth for one in said), None)
    sentence = "What each model says:" if truth is None else f"The right answer is {truth.strip()}."
    if any(not one.options for one in said):
        waiting = [card(model.title, hint("…")) for model in models[len(said) :]]
        written = [_written(model, one) for model, one in zip(models, said, strict=False)]
        return join([hint(sentence), cards(written + waiting)])
    waiting = [stat(model.title, "…") for model in models[len(said) :]]
    chosen = [_chosen(family, model, one) for model, one in zip(models, said, strict=False)]
    return join([hint(sentence), stats(chosen + waiting)])


def _chosen(family: Family, model: Candidate, one: Answer) -> Safe:
    best = max(one.scores)
    sure = f"{best:.0%} sure" if family.scores == "probability" else f"cosine {best:.2f}"
    tone: Kind | None = None if one.right is None else "ok" if one.right else "error"
    return stat(model.title, one.said.strip(), sure, tone)


def _written(model: Candidate, one: Answer) -> Safe:
    mark = "" if one.right is None else chip("right", tone="ok") if one.right else chip("not right", tone="error")
    lines = join(one.said.strip().splitlines(), between="<br>")
    return card(model.title, lines or hint("(nothing)"), badge=mark)


def scores(family: Family, models: Sequence[Candidate], said: Sequence[Answer]) -> Any:
    """The scores of every option as a figure; None where models write freely."""
    if not said or not said[0].options:
        return None
    answered = zip(models, said, strict=False)
    series = [Series(model.title, one.scores, METHOD_COLOURS.get(model.kind)) for model, one in answered]
    options, truth = said[0].options, said[0].truth
    return probabilities(options, series, None if truth is None else options.index(truth), measure=family.scores)


def table_html(measured: AccuracyTable, caption: str = "") -> Safe:
    """Tasks x models in percent, the best merge of each row in bold; the mean, and the mean relative to individual."""
    merges = [i for i, c in enumerate(measured.candidates) if c.key not in (BASE.key, INDIVIDUAL.key)]

    def cells(values: list[float | None]) -> list[object]:
        best = max((value for i in merges if (value := values[i]) is not None), default=None)
        shown: list[object] = []
        for i, value in enumerate(values):
            text = "·" if value is None else f"{value:.1%}"
            shown.append(strong(text) if i in merges and value is not None and value == best else text)
        return shown

    n = range(len(measured.candidates))
    rows: list[list[object]] = [
        [task, *cells(list(line))] for task, line in zip(measured.tasks, measured.values, strict=True)
    ]
    rows.append([strong("Mean"), *cells([measured.mean(i) for i in n])])
    if any(c.key == INDIVIDUAL.key for c in measured.candidates):
        rows.append([strong("Relative to individual"), *cells([measured.normalised(i) for i in n])])
    names = ["task", *(candidate.title for candidate in measured.candidates)]
    return table(names, rows, numeric=range(1, len(names)), caption=caption)
