"""Time and memory by the number of tasks: `python -m bench.tasks [--tasks 8,16,32,64] [--features 768]`.

Merges small towers whose matrices are all 768 x 768. The total number of features is fixed, so each task keeps fewer
features the more tasks there are. Prints a Markdown table. `in the layers` is the report's sum over tensors; the rest
of the time is the start of Python, hashing and writing. `over linear` is that sum divided by what it would be if the
first row's grew linearly with the number of tasks: 1 or less is linear or better.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.machine import machine_line
from bench.ours import CACHE, merge, write_recipe
from bench.reference import Tower, make_towers

SIDE = 768


def tower(n_layers: int) -> Tower:
    """A tower with six matrices per layer and a patch embedding (3 x 16 x 16 = 768 inputs), all of them SIDE x SIDE."""
    return Tower(hidden=SIDE, intermediate=SIDE, layers=n_layers, patch=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="8,16,32,64", help="numbers of tasks, smallest first")
    parser.add_argument("--features", type=int, default=768, help="features of all tasks together, in each layer")
    parser.add_argument("--layers", type=int, default=1, help="layers of the tower: six matrices each")
    parser.add_argument("--folder", type=Path, default=CACHE / "tasks", help="inputs and outputs; needs 3 GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    counts = [int(count) for count in options.tasks.split(",")]
    work = make_towers(options.folder / f"inputs-{options.layers}-{max(counts)}", tower(options.layers), max(counts))
    print("| tasks | features of each | time | in the layers | over linear | merge took | predicted | whole process |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    first = None
    for count in counts:
        rank = options.features // count
        params = {"variant": "readout", "rank": rank}
        recipe = write_recipe(options.folder / f"tasks-{count}.yaml", work, count, params=params)
        found = merge(recipe, options.threads)
        first = first or found.layer_seconds / count
        print(
            f"| {count} | {rank} | {found.spent.seconds:.1f} s | {found.layer_seconds:.1f} s "
            f"| {found.layer_seconds / (first * count):.2f} | {found.took_bytes / 1e6:.0f} MB "
            f"| {found.predicted_bytes / 1e6:.0f} MB | {found.spent.peak_bytes / 1e6:.0f} MB |",
            flush=True,
        )
    print(f"\n{options.layers} layers, {options.features} features. {machine_line(options.threads)}")


if __name__ == "__main__":
    main()
