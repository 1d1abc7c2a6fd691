"""Scores of models on the tasks: a table with intervals, what cannot be told apart, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate
from sftm_app.evaluation.intervals import Interval
from sftm_app.evaluation.model_keys import model_key
from sftm_app.evaluation.scores import Score, ScoreTable
from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.style import Series, merge_colour, merge_pattern, method_colour, method_pattern
from sftm_app.ui.evaluate.sample_sets import SampleSet
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import view_link
from sftm_app.ui.widgets.html import Html, hint, join, small, stack, strong, swatch, table
from sftm_app.ui.workspace import Workspace

# The element below the table that shows the wrong answers of a cell.
WRONG = "wrong-answers"
SAME = "not distinguishable"
HELP = (
    "Small print: 95 % intervals, from the choice of samples. Differences are measured on the same samples; "
    f"“{SAME}” means that the interval of the difference holds 0, so it may be chance. "
)
MOST_CHART_MODELS = 10


def look(candidate: Candidate) -> tuple[str, str]:
    """The colour and the pattern of a model, in every plot."""
    if candidate.folder is not None:
        return merge_colour(candidate.place), merge_pattern(candidate.place)
    return method_colour(candidate.kind), method_pattern(candidate.kind)


def is_merge(candidate: Candidate) -> bool:
    """Whether it is neither the base nor the tasks' own models."""
    return candidate.key not in (BASE.key, INDIVIDUAL.key)


def known_answers(
    studio: Studio, ws: Workspace, known: SampleSet, models: Sequence[Candidate]
) -> dict[str, dict[str, AnswerSheet]]:
    """The answers that models gave to these samples before, by key and task."""
    found = studio.preflight(ws)
    keys = {model.key: model_key(found, model, studio.session) for model in models}
    return {name: studio.answers.load_all(key, known.digests) for name, key in keys.items()}


def with_interval(score: Score | None, missing: str = "·", bold: bool = False, between: str = " ") -> object:
    """A score in percent with its interval in small print. between: the two, in HTML."""
    if score is None:
        return missing
    found = score.interval
    value = f"{found.value:.1%}"
    return join([strong(value) if bold else value, small(f"{found.low:.0%} to {found.high:.0%}")], between)


def points(difference: Interval) -> str:
    """A difference in percentage points: "+2.1 (+0.4 to +3.9)"."""
    value, low, high = (_signed(part) for part in (difference.value, difference.low, difference.high))
    return f"{value} ({low} to {high})"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def best_merge(scores: ScoreTable, models: Sequence[Candidate]) -> Candidate | None:
    """The merge with the highest mean; None while none is measured on every task."""
    done = [(score.value, model) for model in models if is_merge(model) and (score := scores.mean(model.key))]
    return max(done, key=lambda pair: pair[0])[1] if done else None


def ordered(scores: ScoreTable, models: Sequence[Candidate]) -> list[Candidate]:
    """Base, individual, then the merges, best first; those that are not measured are last."""

    def rank(model: Candidate) -> tuple[int, float]:
        mean = scores.mean(model.key)
        if not is_merge(model):
            return (0, float(model.key != BASE.key))
        return (1, -mean.value) if mean else (2, 0.0)

    return sorted(models, key=rank)


def models_table(
    scores: ScoreTable, models: Sequence[Candidate], n_samples: Mapping[str, int], source: str, links: bool = True
) -> Html:
    """Models x (mean, share of the individual models, difference to the best merge, tasks).

    Args:
        scores: of the models.
        models: the rows, in any order.
        n_samples: by task.
        source: where the samples come from, in words.
        links: whether a score links to the wrong answers behind it.
    """
    best = best_merge(scores, models)
    tasks = list(n_samples)
    rows = [_row(scores, model, best, tasks, links) for model in ordered(scores, models)]
    columns = ["model", "mean", "of individual", "against the best", *(task_title(scores, t) for t in tasks)]
    counts = sorted({*n_samples.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    wrong = "A score opens the wrong answers behind it." if links else ""
    caption = f"{measure_words(scores)} on {n} samples per task {source}."
    shown = table(columns, rows, range(1, len(columns)), caption[:1].upper() + caption[1:])
    return stack(shown, hint(HELP + wrong))


def task_title(scores: ScoreTable, task: str) -> object:
    """A task's name, and how it is scored where the tasks differ in that."""
    measure = scores.measures.get(task)
    alike = len({one.name for one in scores.measures.values()}) < 2
    return task if measure is None or alike else join([task, small(measure.title)], " ")


def measure_words(scores: ScoreTable) -> str:
    """How the tasks are scored: "accuracy", or "accuracy or exact match"."""
    names = dict.fromkeys(measure.title for measure in scores.measures.values())
    # Abbreviations keep their capitals.
    return " or ".join(name if name[1:] != name[1:].lower() else name.lower() for name in names)


def _row(
    scores: ScoreTable, model: Candidate, best: Candidate | None, tasks: Sequence[str], links: bool
) -> list[object]:
    cells: list[object] = []
    for task in tasks:
        score = scores.score(model.key, task)
        value: object = "·" if score is None else f"{score.value:.1%}"
        if score is not None and links:
            value = view_link(value, WRONG, ("wrong", model.key, task))
        cells.append(value if score is None else join([value, small(_between(score))], "<br>"))
    mean, is_best = scores.mean(model.key), best is not None and model.key == best.key
    share = scores.normalised(model.key, INDIVIDUAL.key)
    title = strong(model.title) if is_best else model.title
    name = join([swatch(*look(model)), title], " ")
    return [
        name,
        with_interval(mean, bold=is_best, between="<br>"),
        with_interval(share, "–" if mean else "·", between="<br>"),
        *_against(scores, model, best),
        *cells,
    ]


def _between(score: Score) -> str:
    return f"{score.interval.low:.0%} to {score.interval.high:.0%}"


def _against(scores: ScoreTable, model: Candidate, best: Candidate | None) -> list[object]:
    if best is None or model.key == best.key:
        return ["the best" if best else "·"]
    difference = scores.difference(model.key, best.key)
    if difference is None:
        return ["·"]
    words = small(points(difference))
    return [join([SAME, words], "<br>") if difference.holds_zero else words]


def score_bars(scores: ScoreTable, models: Sequence[Candidate]) -> Any:
    """The scores per task with intervals, of at most ten models: the best ones. None while nothing is measured."""
    shown = [model for model in ordered(scores, models) if scores.cells.get(model.key)][:MOST_CHART_MODELS]
    if not shown or not scores.tasks:
        return None
    series = []
    for model in shown:
        found = [scores.score(model.key, task) for task in scores.tasks]
        values, lows, highs = (
            [None if one is None else getattr(one.interval, end) for one in found] for end in ("value", "low", "high")
        )
        series.append(Series(model.title, values, *look(model), lows, highs))
    return accuracy_bars(scores.tasks, series, measure_words(scores))
