"""How long the trials of a search take, and what it finds: `python -m bench.search [--pack glyphs] [--trials 50]`.

Searches all methods that fit, with one weight per task, on 100 validation samples of each task, from an empty folder
and with an empty cache. Prints Markdown: trials a minute, seconds of a trial (of the clock and of the processor), and
accuracy on the test samples.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.machine import machine_line
from sftm_app.evaluation.labelled import find_samples
from sftm_app.evaluation.packs import open_pack
from sftm_app.methods import METHODS
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.resources import asset_path
from sftm_app.session import open_session
from sftm_app.tuning.search import Budget, Search, search
from sftm_app.tuning.setup import Setup, make_setup


def open_setup(pack_folder: Path, folder: Path) -> Setup:
    """The search of a demo pack, with an empty cache in `folder`."""
    environment = {"SFTM_CACHE_DIR": str(folder / "cache"), "SFTM_CACHE_GB": "10"}
    session, pack = open_session(environment=environment), open_pack(pack_folder)
    entries = [{"path": str(task.path), "name": task.name} for task in pack.tasks]
    found = open_inputs(make_recipe(pack.base, entries), session).require()
    samples, _ = find_samples(found, pack_folder)
    return make_setup(found, samples, session, folder / "searches")


def run(setup: Setup, n_trials: int) -> tuple[Search, list[float]]:
    """The finished search, and the seconds of the processor that each trial took."""
    spent, since = [], time.process_time()
    found = None
    for now in search(setup, Budget(n_trials)):
        if found is not None and len(now.tried) > len(found.tried):
            spent.append(time.process_time() - since)
        if found is None or len(now.tried) > len(found.tried) or now.phase != "trials":
            since = time.process_time()
        found = now
    assert found is not None
    return replace(found), spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default="glyphs", help="a demo pack (default: glyphs)")
    parser.add_argument("--trials", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sftm-search-") as folder:
        setup = open_setup(asset_path("demo") / options.pack, Path(folder))
        found, spent = run(setup, options.trials)
    seconds = [one.seconds for one in found.tried]
    print(f"{machine_line()} Pack {options.pack}, {len(found.tried)} trials.\n")
    print("| trials a minute | seconds of a trial: median | longest | of the processor: median | longest |")
    print("|---:|---:|---:|---:|---:|")
    print(
        f"| {60 * len(seconds) / sum(seconds):.0f} | {statistics.median(seconds):.2f} | {max(seconds):.2f} "
        f"| {statistics.median(spent):.2f} | {max(spent):.2f} |\n"
    )
    print("| model | mean accuracy on the test samples | 95 % interval |\n|---|---:|---:|")
    for row in found.comparison.rows if found.comparison else ():
        if row.accuracy is not None:
            title = METHODS[row.candidate.kind].title if row.is_merge else row.candidate.title
            print(f"| {title} | {row.accuracy.value:.1%} | {row.accuracy.low:.1%} to {row.accuracy.high:.1%} |")
    if found.best is not None:
        print(f"\nBest of the search: {found.best.settings.method}, {found.best.settings.params}")
        print(f"Its weights: {found.best.settings.weights}")


if __name__ == "__main__":
    main()
