"""Compare the merge methods on a bench of real fine-tunes, stage by stage.

    python -m bench.real.compare text                                        # everything
    python -m bench.real.compare text --stages defaults,report --seeds 0 --quick
    python -m bench.real.compare text --seeds 0 --quick --settings "sftm scaling=0.85" "average"

Every stage continues where it was stopped. Stages:

    defaults   every row of `rows.py` at its default, on the test samples
    grids      every row's grid on the validation samples of the first seed, and the best of it on the test samples
    counts     2, 3, ... tasks, for the main methods at their defaults, in two orders of the tasks
    unseen     every row's default on the sets that no task was tuned for
    cost       seconds and memory of every row's default, with nothing cached
    report     tables and figures from what was measured so far; merges nothing
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.real.bench import TEST, VALIDATION, Bench, Settings, settings
from bench.real.merging import open_workplace
from bench.real.packages import CACHE
from bench.real.report import COUNTED, orders, report
from bench.real.results import BASE, INDIVIDUAL, correctness, merge_cost
from bench.real.rows import Row, rows
from bench.real.stages import set_up
from bench.real.study import Model, Study, best_of
from sftm_app.errors import InputError, MethodError
from sftm_app.session import open_session

# The module and function that make a bench from the cache folder and a seed, and the seeds.
BENCHES = {
    "text": ("bench.real.minilm:make_bench", (0, 1, 2)),
    "sre": ("bench.real.minilm:make_sre_bench", (0, 1, 2)),
    "vision": ("bench.real.dinov2:make_bench", (0,)),
    "lora": ("bench.real.smollm2:make_bench", (0,)),
    "glyphs": ("bench.real.demos:make_glyphs", (0,)),
    "wordplay": ("bench.real.demos:make_wordplay", (0,)),
    "glosses": ("bench.real.demos:make_glosses", (0,)),
}


def make_study(name: str, cache: Path, seeds: Sequence[int], quick: bool) -> Study:
    """Open a bench with several seeds; trains what is missing. quick: only the first test part."""
    module, function = BENCHES[name][0].split(":")
    make: Callable[[Path, int], Bench] = getattr(importlib.import_module(module), function)
    session = open_session()
    places = tuple(open_workplace(make(cache, seed), session) for seed in seeds)
    return Study(name, places, (TEST,) if quick else (TEST, *places[0].bench.more))


def measured_line(study: Study, chosen: Settings, remerge: bool = False) -> str:
    """Measure one merge, and say what it gives. A method that cannot merge these tasks says why."""
    try:
        study.measure(chosen, remerge)
    except (InputError, MethodError) as error:
        return f"{chosen}: {error}"
    gap = study.gap(chosen)
    assert gap is not None
    return f"{chosen}: {gap.value:.0%} of the gap closed ({gap.low:.0%} to {gap.high:.0%})"


def defaults(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """Every row at its default."""
    for row in lines:
        yield measured_line(study, row.default, remerge)


def grids(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """Every row's grid on the validation samples of the first seed, and the best on the test samples."""
    choosing = study.first_seed().on(VALIDATION)
    for row in lines:
        for chosen in row.grid:
            yield "validation: " + measured_line(choosing, chosen, remerge)
        best = best_of(choosing, row.grid)
        if best is not None:
            yield measured_line(study, best, remerge)


def counts(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """The main methods at their defaults with 2, 3, ... tasks, on the first test part of the first seed."""
    first = study.first_seed().on(TEST)
    for names in orders(study):
        for n_tasks in range(2, len(names)):
            part = first.of(names[:n_tasks])
            for row in lines:
                if row.default in COUNTED:
                    yield f"{n_tasks} tasks: " + measured_line(part, row.default, remerge)


def unseen(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """Every row's default on the sets that no task was tuned for."""
    cases = [(head, name) for name, head in (study.places[0].bench.unseen or {}).items()]
    models: list[Model] = [BASE, INDIVIDUAL, *(row.default for row in lines)]
    for model in models if cases else ():
        try:
            found = [correctness(place, model, cases, remerge) for place in study.places]
        except (InputError, MethodError) as error:
            yield f"{model}: {error}"
            continue
        shares = (f"{name} {sum(one[head, name].mean() for one in found) / len(found):.1%}" for head, name in cases)
        yield f"{model}: {', '.join(shares)}"


def costs(study: Study, lines: Sequence[Row], remerge: bool) -> Iterator[str]:
    """Seconds of the processor and memory of every row's default."""
    for row in lines:
        try:
            yield f"{row.title}: {merge_cost(study.places[0], row.default)}"
        except (InputError, MethodError) as error:
            yield f"{row.title}: {error}"


STAGES = {"defaults": defaults, "grids": grids, "counts": counts, "unseen": unseen, "cost": costs, "report": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder for packages and models (default: {CACHE})")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages with commas between (default: all)")
    parser.add_argument("--seeds", help="seeds with commas between (default: all)")
    parser.add_argument("--quick", action="store_true", help="use only the first test part")
    parser.add_argument("--methods", help="only the rows of these methods, with commas between (default: all)")
    parser.add_argument("--settings", nargs="+", metavar="SETTINGS", help="measure these merges, and run no stage")
    parser.add_argument("--remerge", action="store_true", help="merge again, and measure what comes out different")
    options = parser.parse_args()
    set_up()
    cache = options.cache.expanduser().resolve()
    (cache / "packages").mkdir(parents=True, exist_ok=True)
    seeds = tuple(map(int, options.seeds.split(","))) if options.seeds else BENCHES[options.bench][1]
    study = make_study(options.bench, cache, seeds, options.quick)
    if options.settings:
        for text in options.settings:
            print(measured_line(study, parse_settings(text), options.remerge), flush=True)
        return
    methods = options.methods.split(",") if options.methods else ()
    lines = [row for row in rows() if not methods or row.default.method in methods]
    for stage in options.stages.split(","):
        for line in STAGES[stage](study, lines, options.remerge):
            print(f"{stage}: {line}", flush=True)


def parse_settings(text: str) -> Settings:
    """Settings as `--settings` takes them: a method and its parameters, such as "sftm scaling=0.85"."""
    method, *pairs = text.split(" ")
    params = dict(pair.split("=", 1) for pair in pairs)
    return settings(method, **{name: _value(value) for name, value in params.items()})


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.replace("_energy", "% energy")


if __name__ == "__main__":
    main()
