"""The models to compare, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftm_app.errors import InputError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, method_candidate
from sftm_app.evaluation.family import Answer, Family
from sftm_app.evaluation.samples import Samples
from sftm_app.methods import METHODS
from sftm_app.planning.recipe import Recipe
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.style import Series
from sftm_app.ui.evaluate.score_view import look
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Html, Kind, card, cards, chip, hint, join, stat, stats
from sftm_app.ui.wording import BASELINE
from sftm_app.ui.workspace import Workspace

MOST_MERGES_OFFERED = 50
# Merging in memory delays the first answer, so such a merge is ticked at first only where it takes a moment.
QUICK_MERGE_BYTES = 200_000_000


@dataclass(frozen=True)
class Offer:
    """The models to choose from, and the keys of those that are ticked."""

    candidates: tuple[Candidate, ...]
    ticked: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The keys of all models to choose from."""
        return [candidate.key for candidate in self.candidates]


def candidates(studio: Studio, ws: Workspace) -> list[Candidate]:
    """Base, individual, every method that merges this many tasks, and this workspace's merges, newest first."""
    merges = studio.merges.of(ws)[::-1][:MOST_MERGES_OFFERED]
    fitting = [name for name, method in METHODS.items() if method.n_tasks in (None, len(ws.tasks))]
    own = [replace(one.candidate, title=f"Your merge: {one.name}") for one in merges]
    return [BASE, INDIVIDUAL, *(method_candidate(name) for name in fitting), *own]


def ticked_candidates(studio: Studio, ws: Workspace, keys: Sequence[str]) -> list[Candidate]:
    """The candidates of these keys. Keys come from the browser: only those on offer count."""
    return [candidate for candidate in candidates(studio, ws) if candidate.key in keys] if keys else []


def chosen_candidates(studio: Studio, ws: Workspace, keys: Sequence[str]) -> list[Candidate]:
    """The same. Raises InputError: none is chosen."""
    found = ticked_candidates(studio, ws, keys)
    if not found:
        raise InputError("No model is chosen. Tick at least one under Models.")
    return found


def first_offer(studio: Studio, ws: Workspace) -> Offer:
    """The models to choose from for a workspace that was just loaded, with those ticked that are worth comparing."""
    if not studio.usable(ws):
        return Offer((), ())
    found = tuple(candidates(studio, ws))
    merges = [candidate.key for candidate in found if _is_run(candidate)]
    ticked = [BASE.key, INDIVIDUAL.key, *merges[:1]]
    if merges_quickly(studio, ws):
        ticked += [method_candidate(BASELINE).key, *([] if merges else [method_candidate(Recipe.method).key])]
    return Offer(found, tuple(ticked))


def next_offer(studio: Studio, ws: Workspace, ticked: Sequence[str], before: Sequence[str]) -> Offer:
    """The models to choose from now. What was ticked stays ticked, and a merge that is new is ticked too.

    before: the keys that were offered last.
    """
    if not before or not studio.usable(ws):
        return first_offer(studio, ws)
    found = tuple(candidates(studio, ws))
    keys = {candidate.key for candidate in found}
    new = next((candidate for candidate in found if _is_run(candidate) and candidate.key not in before), None)
    stay = [key for key in ticked if key in keys]
    if new is None:
        return Offer(found, tuple(stay))
    # The merge on disk replaces the merge in memory by the same method.
    return Offer(found, (*(key for key in stay if key != method_candidate(new.kind).key), new.key))


def offer_of(studio: Studio, ws: Workspace, model: Path) -> Offer:
    """The models to choose from, with a merge and what it is compared with ticked.

    model: the folder of the merge.
    """
    found = tuple(candidates(studio, ws))
    wanted = {BASE.key, INDIVIDUAL.key, f"folder:{model}"}
    if merges_quickly(studio, ws):
        wanted.add(method_candidate(BASELINE).key)
    return Offer(found, tuple(one.key for one in found if one.key in wanted))


def _is_run(candidate: Candidate) -> bool:
    return candidate.key.startswith("folder:")


def merges_quickly(studio: Studio, ws: Workspace) -> bool:
    """Whether a merge in memory takes only a moment."""
    return sum(task.checkpoint.n_bytes for task in studio.preflight(ws).tasks) <= QUICK_MERGE_BYTES


def answers(
    studio: Studio, ws: Workspace, task: str, sample: Samples, models: Sequence[Candidate]
) -> Iterator[tuple[Html, Any]]:
    """What the models answer to one sample, again after each model: a card for each model, and the scores as a figure.

    The figure is None where models write freely.
    """
    model_pool = studio.model_pool(ws)
    family = model_pool.family(task)
    given: list[Answer] = []
    for candidate in models:
        given += model_pool.model(candidate, task).answer(sample)
        yield verdicts(family, models, given), scores(family, models, given)


def verdicts(family: Family, models: Sequence[Candidate], given: Sequence[Answer]) -> Html:
    """A card for each model; those that have answered show what they said."""
    truth = next((one.target for one in given), None)
    sentence = "What each model says:" if truth is None else f"The right answer is {truth.strip()}."
    waiting = models[len(given) :]
    if any(not one.options for one in given):
        shown = [_written(model, one) for model, one in zip(models, given, strict=False)]
        return join([hint(sentence), cards(shown + [card(model.title, hint("…")) for model in waiting])])
    shown = [_chosen(family, model, one) for model, one in zip(models, given, strict=False)]
    return join([hint(sentence), stats(shown + [stat(model.title, "…") for model in waiting])])


def _chosen(family: Family, model: Candidate, one: Answer) -> Html:
    best = max(one.scores)
    sure = f"{best:.0%} sure" if family.scores == "probability" else f"cosine {best:.2f}"
    tone: Kind | None = None if one.correct is None else "ok" if one.correct else "error"
    return stat(model.title, one.text.strip(), sure, tone)


def _written(model: Candidate, one: Answer) -> Html:
    mark = "" if one.correct is None else chip("right", tone="ok") if one.correct else chip("wrong", tone="error")
    lines = join(one.text.strip().splitlines(), between="<br>")
    return card(model.title, lines or hint("(nothing)"), badge=mark)


def scores(family: Family, models: Sequence[Candidate], given: Sequence[Answer]) -> Any:
    """The scores of every option as a figure; None where models write freely."""
    if not given or not given[0].options:
        return None
    answered = zip(models, given, strict=False)
    series = [Series(model.title, one.scores, *look(model)) for model, one in answered]
    options, truth = given[0].options, given[0].target
    return probabilities(options, series, None if truth is None else options.index(truth), measure=family.scores)
