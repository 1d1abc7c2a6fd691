"""What a finished merge can do: where labelled samples are known, it is measured, and the result opens with that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftm_app.errors import JobError, SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, method_candidate
from sftm_app.evaluation.scores import Score, ScoreTable, score_table
from sftm_app.jobs.folder import RunFolder
from sftm_app.ui.comparisons import Board
from sftm_app.ui.evaluate.answers import merges_quickly
from sftm_app.ui.evaluate.labelled import HOW_IMAGES, HOW_TEXTS
from sftm_app.ui.evaluate.progress_view import failures_html, progress_html, progress_of
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.evaluate.score_view import known_answers, measure_words, points, score_bars, task_title, with_interval
from sftm_app.ui.evaluate.sources import BESIDE, Source, benchmark_of, known_source, sample_set
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Html, hint, notice, stack, stat, stats, strong, table
from sftm_app.ui.wording import BASELINE
from sftm_app.ui.workspace import Workspace

# A merge that ended this long ago was watched to its end; an older one is measured at once only where it is quick.
JUST_ENDED_S = 600.0
AVERAGE = method_candidate(BASELINE)


@dataclass(frozen=True)
class Scores:
    """What the result of a run opens with.

    Attributes:
        html: the scores, or how to add samples; None if the page shows them already.
        figure: the same as bars; None while a score is missing.
        progress: how far they are.
        measuring: whether models are being measured.
        askable: whether they could be, if a person asks for it.
        drawn: changes whenever html or figure does.
    """

    html: Html | None = Html("")
    figure: Any = None
    progress: Html = Html("")
    measuring: bool = False
    askable: bool = False
    drawn: object = None


def board_key(run: RunFolder) -> object:
    """Of the board on which a run is measured."""
    return "run", run.run_id


def workspace_of(studio: Studio, run: RunFolder) -> Workspace:
    """The models that a run merged. Raises RecipeError: its recipe cannot be read."""
    recipe = studio.recipe(run)
    tasks = tuple(replace(task, weight=1.0) for task in recipe.tasks)
    return Workspace(recipe.base, tasks, roles=recipe.roles, tokenizer=recipe.tokenizer)


def measure_run(studio: Studio, run: RunFolder) -> None:
    """Measure a merge, base, individual models and the plain average in the background.

    Raises:
        JobError: no labelled samples are known, or it is being measured.
        SampleError, InputError, ResourceError: it cannot be measured.
    """
    ws = workspace_of(studio, run)
    source = known_source(studio, ws)
    if source is None:
        raise JobError("No labelled samples are known for these models. Enter some on the Evaluate tab.")
    conditions, benchmark = benchmark_of(studio, ws, source)
    studio.comparisons.start(board_key(run), conditions, benchmark, _models(studio, ws, run))


def cancel_measuring(studio: Studio, run: RunFolder) -> None:
    """Stop to measure a merge. What was measured is kept."""
    studio.comparisons.cancel(board_key(run))


def scores_of(studio: Studio, run: RunFolder, drawn: object = None) -> Scores:
    """What a finished run can do. If that is not known, and the run just ended or is quick, it begins to measure it.

    drawn: what the page shows already.
    """
    try:
        ws = workspace_of(studio, run)
        source = known_source(studio, ws)
        if source is None:
            return Scores(_without_samples(studio, ws))
        board = studio.comparisons.board(board_key(run))
        now = (run.run_id, source, progress_of(board))
        if board is not None and board.active and drawn == now:
            return Scores(None, None, progress_html(board), True, False, now)
        models = _models(studio, ws, run)
        if board is None and not _all_known(studio, ws, source, models) and _at_once(studio, ws, run):
            measure_run(studio, run)
            board = studio.comparisons.board(board_key(run))
        shown = _scores(studio, ws, source, models, board)
        return replace(shown, drawn=(run.run_id, source, progress_of(board)))
    except SFTMError as error:
        return Scores(notice("info", "This merge was not measured", error))


def _at_once(studio: Studio, ws: Workspace, run: RunFolder) -> bool:
    return time.time() - run.report.stat().st_mtime < JUST_ENDED_S or merges_quickly(studio, ws)


def _models(studio: Studio, ws: Workspace, run: RunFolder) -> list[Candidate]:
    """Base, individual, the plain average where it is merged in a moment, and the merge."""
    merge = next((one for one in studio.merges.of(ws) if one.run == run), None)
    if merge is None:
        raise JobError("The merge is not there any more. Start it again.")
    plain = merge.recipe.method == BASELINE
    average = [AVERAGE] if merges_quickly(studio, ws) and not plain else []
    return [BASE, INDIVIDUAL, *average, replace(merge.candidate, title="This merge")]


def _all_known(studio: Studio, ws: Workspace, source: Source, models: Sequence[Candidate]) -> bool:
    known = sample_set(studio, ws, source)
    return all(len(given) == len(known.digests) for given in known_answers(studio, ws, known, models).values())


def _scores(studio: Studio, ws: Workspace, source: Source, models: Sequence[Candidate], board: Board | None) -> Scores:
    known = sample_set(studio, ws, source)
    scores = score_table(known_answers(studio, ws, known, models))
    measuring = board is not None and board.active
    complete = all(scores.mean(model.key) for model in models)
    bar = progress_html(board) if board and not complete else Html("")
    where = f"{source.where}" if source.where else "the demo, which no model was trained on"
    shown: list[object] = []
    if any(scores.cells.values()):
        counts = sorted({*known.n_samples.values()})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        shown += [_headline(scores, models), _tasks_table(scores, models, f"{n} samples per task of {where}.")]
    elif not measuring:
        shown.append(hint(f"Labelled samples are known ({where}), but this merge was not measured on them yet."))
    left_out = notice("info", "Left out", items=known.left_out) if known.left_out else ""
    figure = score_bars(scores, models) if complete else None
    html = stack(*shown, left_out, failures_html(board))
    return Scores(html, figure, bar, measuring, not (complete or measuring))


def _headline(scores: ScoreTable, models: Sequence[Candidate]) -> Html:
    """The means, and what the merge is compared with the others."""
    merge = models[-1]
    figures = []
    for model in (merge, *models[-2::-1]):
        mean = scores.mean(model.key)
        value = f"{mean.value:.1%}" if mean else "…"
        between = f"{mean.interval.low:.0%} to {mean.interval.high:.0%}" if mean else ""
        figures.append(stat(model.title, value, between))
    sentences = [_against(scores, merge, other) for other in models[-2:0:-1]]
    said = " ".join(sentence for sentence in sentences if sentence)
    share = scores.normalised(merge.key, INDIVIDUAL.key)
    relative = f" It keeps {share.value:.1%} of what the individual models reach." if share else ""
    return stack(stats(figures), hint(f"Mean {measure_words(scores)} over the tasks. {said}{relative}"))


def _against(scores: ScoreTable, merge: Candidate, other: Candidate) -> str:
    difference = scores.difference(merge.key, other.key)
    if difference is None:
        return ""
    name = "the individual models" if other.key == INDIVIDUAL.key else other.title.lower()
    name = f"the {name}" if other.key == AVERAGE.key else name
    if difference.holds_zero:
        return f"This merge is not distinguishable from {name}: {points(difference)} points."
    word, sign = ("above", 1) if difference.value > 0 else ("below", -1)
    by, *ends = (f"{100 * abs(part):.1f}" for part in (difference.value, difference.low, difference.high))
    low, high = ends[::sign]
    return f"It is {by} points {word} {name} ({low} to {high})."


def _tasks_table(scores: ScoreTable, models: Sequence[Candidate], caption: str) -> Html:
    """Tasks x models, each with its interval; the mean first."""

    def cells(found: Sequence[Score | None]) -> list[object]:
        return [with_interval(score, "·", place == len(found) - 1, "<br>") for place, score in enumerate(found)]

    rows: list[list[object]] = [[strong("Mean"), *cells([scores.mean(model.key) for model in models])]]
    rows += [[task_title(scores, t), *cells([scores.score(m.key, t) for m in models])] for t in scores.tasks]
    return table(["task", *(m.title for m in models)], rows, range(1, len(models) + 1), f"{caption} 95 % intervals.")


def _without_samples(studio: Studio, ws: Workspace) -> Html:
    """How to add samples, so that the next merge is measured."""
    family = family_of(studio, ws, ws.task_names[0]) if studio.usable(ws) else None
    if family is None:
        return Html("")
    how = HOW_TEXTS if family.reads == "text" else HOW_IMAGES
    where = (
        f"Labelled samples is on the Evaluate tab. Or put a folder named {BESIDE} with such content next to the base."
    )
    body = f"Without them, nothing says how accurate a merge is. {how} {where} Then every merge is measured."
    return notice("info", "No labelled samples yet", body)
