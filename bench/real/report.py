"""Write what was measured of one bench into README.md, between its marks, and its figures into assets/pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import machine_line
from bench.real import figures
from bench.real.bench import TEST, VALIDATION, Settings
from bench.real.rows import Row, rows
from bench.real.study import Model, Study, best_of
from bench.real.tables import (
    PREDICTORS,
    accuracies_table,
    correlations_table,
    extras_table,
    measured_rows,
    methods_table,
    scatter,
    unseen_table,
)
from sftm_app.evaluation.intervals import Interval
from sftm_app.methods import METHODS
from sftm_app.resources import asset_path

README = Path(__file__).with_name("README.md")
# The methods that are merged with 2, 3, ... tasks.
COUNTED = tuple(map(Settings, ("sftm", "average", "task_arithmetic", "tsv_m", "iso_c", "wudi")))


def orders(study: Study) -> list[tuple[str, ...]]:
    """The tasks as listed, and the other way round."""
    names = study.places[0].names
    return [names, names[::-1]]


def report(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """Write tables and figures of all rows. lines, remerge: not used, because nothing is merged."""
    merges = scatter(study)
    drawn = {f"real-{study.name}-methods": figures.methods_figure(method_lines(study))}
    counted = count_lines(study)
    if counted:
        drawn[f"real-{study.name}-tasks"] = figures.counts_figure(counted)
    drawn[f"real-{study.name}-scatter"] = figures.scatter_figure(merges, PREDICTORS)
    figures.write(drawn, asset_path() / "pictures")
    text = README.read_text(encoding="utf-8")
    README.write_text(between(text, study.name, section(study, merges, list(drawn))), encoding="utf-8")
    yield f"{README.name} and {', '.join(drawn)} written"


def section(study: Study, merges: list[dict[str, float | str]], pictures: list[str]) -> str:
    """The section of a bench in README.md."""
    shown: list[tuple[str, Model]] = [(row.title, row.default) for row in measured_rows(study)]
    n_test = len(study.ends[0][0][0])
    seeds = ",".join(place.bench.name.rpartition("-")[2] for place in study.places)
    quick = " --quick" if len(study.parts) <= len(study.places[0].bench.more) else ""
    parts = [
        f"    python -m bench.real.compare {study.name} --seeds {seeds}{quick}",
        f"{machine_line()}. Seeds: {len(study.places)}. Test samples a task: {n_test}. Intervals: 95 %, by bootstrap "
        "over samples and seeds. `*`: the interval of the paired difference excludes zero.",
        methods_table(study),
        accuracies_table(study, shown),
        extras_table(study),
        unseen_table(study),
        correlations_table(merges),
        *(f"![{name}](../../assets/pictures/{name}.svg)" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part)


def between(text: str, name: str, section_text: str) -> str:
    """`text` with the lines between the marks of `name` replaced.

    Raises:
        ValueError: a mark is missing.
    """
    start, end = f"<!-- measured: {name} -->\n", f"<!-- end: {name} -->\n"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs the lines {start!r} and {end!r} once each.")
    head, rest = text.split(start)
    return f"{head}{start}\n{section_text}\n\n{end}{rest.split(end)[1]}"


def method_lines(study: Study) -> list[tuple[str, Interval, Interval | None]]:
    """Title, default and best of every row that was measured, best default first."""
    choosing = study.first_seed().on(VALIDATION)
    found = []
    for row in rows():
        default, best = study.gap(row.default), best_of(choosing, row.grid)
        if default is not None:
            found.append((row.title, default, study.gap(best) if best else None))
    return sorted(found, key=lambda line: -line[1].value)


def count_lines(study: Study) -> list[tuple[str, list[int], list[Interval]]]:
    """For each counted method the numbers of tasks and the mean share over the orders, with the wider interval."""
    first = study.first_seed().on(TEST)
    found = []
    for chosen in COUNTED:
        numbers, values = [], []
        for n_tasks in range(2, len(first.places[0].names) + 1):
            gaps = [first.of(names[:n_tasks]).gap(chosen) for names in orders(first)]
            there = [gap for gap in gaps if gap is not None]
            if there:
                numbers.append(n_tasks)
                values.append(mean_of(there))
        if len(numbers) > 1:
            found.append((METHODS[chosen.method].title, numbers, values))
    return found


def mean_of(found: list[Interval]) -> Interval:
    """The mean of estimates. Its interval is the mean interval, because the orders share tasks and samples."""
    parts = ([one.value for one in found], [one.low for one in found], [one.high for one in found])
    return Interval(*(sum(part) / len(part) for part in parts))
