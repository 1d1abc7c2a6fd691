"""The Markdown tables of a study, from what was measured so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.real.bench import TEST, VALIDATION, Settings
from bench.real.correlation import spearman
from bench.real.results import BASE, INDIVIDUAL, all_merges, known, stored_cost
from bench.real.rows import Row, rows
from bench.real.stages import table
from bench.real.study import Model, Study, best_of
from sftm_app.evaluation.intervals import Interval, mean_accuracy

DEFAULT = Settings("sftm")
NONE = "-"
# The figures of a merge that are compared with its accuracy. Where small values are good, a good predictor has a
# correlation near -1.
PREDICTORS = ("readout error", "mapping error", "variance", "interference", "distance")


def share(found: Interval | None) -> str:
    """A share of the gap in percent with its interval."""
    return NONE if found is None else f"{found.value:.0%} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def points(found: Interval | None) -> str:
    """A difference of shares in points with its interval, and a mark where the interval excludes zero."""
    if found is None:
        return NONE
    sure = "" if found.low <= 0 <= found.high else " *"
    return f"{100 * found.value:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f}){sure}"


def measured_rows(study: Study) -> list[Row]:
    """The rows whose default was measured, best first."""
    there = [row for row in rows() if study.table(row.default) is not None]
    return sorted(there, key=lambda row: -mean_accuracy(study.table(row.default) or []))


def methods_table(study: Study) -> str:
    """Every method at its default and at its best, with seconds and memory."""
    choosing = study.first_seed().on(VALIDATION)
    lines = []
    for row in measured_rows(study):
        best = best_of(choosing, row.grid)
        spent = stored_cost(study.places[0], row.default)
        difference = None if row.default == DEFAULT else study.difference(row.default, DEFAULT)
        cells = [share(study.gap(row.default)), points(difference), chosen_words(row, best)]
        cells += [share(study.gap(best)) if best else NONE]
        cells += [f"{spent['seconds']:.1f}", f"{spent['peak_bytes'] / 1e6:.0f}"] if spent else [NONE, NONE]
        lines.append((row.title, cells))
    columns = ["default", "minus SFTM's default", "best on validation", "best", "seconds", "memory, MB"]
    return table("method", columns, lines)


def chosen_words(row: Row, best: Settings | None) -> str:
    """What differs from the row's default in the best settings."""
    if best is None:
        return NONE
    given = dict(row.default.params)
    return ", ".join(f"{name} {value}" for name, value in best.params if name not in given or given[name] != value)


def accuracies_table(study: Study, models: Sequence[tuple[str, Model]]) -> str:
    """The accuracy of some models on every task, and their mean. models: titles and models."""
    lines = []
    for title, model in (("Base", BASE), ("Individual", INDIVIDUAL), *models):
        found = study.table(model)
        if found is None:
            continue
        means = np.mean([[task.mean() for task in tasks] for tasks in found], axis=0)
        lines.append((title, [*(f"{mean:.1%}" for mean in means), f"{means.mean():.1%}"]))
    return table("model", [*study.tasks, "mean"], lines)


def unseen_table(study: Study) -> str | None:
    """The accuracy of every method's default on the sets that no task was tuned for, with intervals."""
    sets = study.places[0].bench.unseen or {}
    parts = {name: study.on(name).scoring(head) for name, head in sets.items()}
    models: list[tuple[str, Model]] = [("Base", BASE), ("Individual", INDIVIDUAL)]
    models += [(row.title, row.default) for row in measured_rows(study)]
    lines = []
    for title, model in models:
        found = {name: part.accuracy(model) for name, part in parts.items()}
        if any(one is None for one in found.values()) or not found:
            continue
        kept = [one for one in found.values() if one is not None]
        cells = [f"{one.value:.1%} ± {one.half:.1%}" for one in kept]
        lines.append((title, [*cells, f"{sum(one.value for one in kept) / len(kept):.1%}"]))
    columns = [f"{name} (head of {head})" for name, head in sets.items()]
    return table("model", [*columns, "mean"], lines) if lines else None


def scatter(study: Study) -> list[dict[str, float | str]]:
    """Per merge of all tasks of the first seed: its figures and the share of the gap that it closes.

    Merges that were measured on the validation samples only count with those, the others with the first test part.
    """
    place = study.places[0]
    merges = [merge for merge in all_merges(place.bench) if tuple(merge["tasks"]) == place.names]
    found: dict[str, dict[str, float | str]] = {}
    for part in (VALIDATION, TEST):
        one = Study(study.name, (place,), (part,))
        low, high = (mean_accuracy(end) for end in one.ends)
        for merge in merges:
            correct = known(place.bench, merge["model"], [(task, part) for task in one.tasks])
            if correct is not None:
                accuracy = float(np.mean([values.mean() for values in correct.values()]))
                closed = (accuracy - low) / (high - low)
                found[merge["model"]] = {"merge": merge["settings"], "gap closed": closed, **merge["figures"]}
    return list(found.values())


def correlations(merges: Sequence[dict[str, float | str]]) -> dict[str, tuple[float, int]]:
    """Spearman's rank correlation of each figure with the share of the gap that is closed, and the number of merges."""
    found = {}
    for name in PREDICTORS:
        there = [merge for merge in merges if name in merge]
        if len(there) > 2:
            given = [float(merge[name]) for merge in there], [float(merge["gap closed"]) for merge in there]
            found[name] = (spearman(*given), len(there))
    return found


def correlations_table(merges: Sequence[dict[str, float | str]]) -> str:
    """The rank correlations as a table."""
    lines = [(name, [f"{value:+.2f}", str(n)]) for name, (value, n) in correlations(merges).items()]
    return table("figure", ["rank correlation", "merges"], lines)


def extras_table(study: Study) -> str | None:
    """The bench's other figures of every method's default."""
    names: list[str] = []
    lines = []
    for row in measured_rows(study):
        found = {name: value for name, value in study.figures(row.default).items() if name not in PREDICTORS}
        names = names or list(found)
        lines.append((row.title, [f"{found[name]:.3f}" if name in found else NONE for name in names]))
    return table("model", names, lines) if names else None
