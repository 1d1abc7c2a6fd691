"""Kill a merge near its end and resume it: `python -m bench.resume [--layers 2] [--at 0.9]`.

Merges the tower of bench.peers with SFTM at full rank: once without interruption, once until a share of its tensors is
finished and the process is killed, and from there to its end. Prints a Markdown table, and whether both outputs hold
the same bytes.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import time
from pathlib import Path

from bench.machine import machine_line
from bench.ours import CACHE, clear, environment, forget_factors, merge, merge_command, must, write_recipe
from bench.reference import ROOT, Tower, make_towers, tower_shapes
from sftm_app.weights.partial import PROGRESS_NAME, partial_of

N_TASKS = 8
WEIGHTS = "model.safetensors"


def merge_until(recipe: Path, output: Path, n_tensors: int, environment: dict[str, str]) -> float:
    """Start a merge and kill it once `n_tensors` tensors are finished.

    Returns:
        The seconds until it was killed.

    Raises:
        SystemExit: the merge ended before that.
    """
    progress = partial_of(output) / PROGRESS_NAME
    started = time.perf_counter()
    child = subprocess.Popen(
        [str(word) for word in merge_command(recipe, output)], env={**os.environ, **environment}, cwd=ROOT
    )
    # The first line describes the merge, each further line names a finished tensor.
    while not progress.exists() or progress.read_bytes().count(b"\n") <= n_tensors:
        if child.poll() is not None:
            raise SystemExit(f"The merge ended (exit code {child.returncode}) before it could be killed.")
        time.sleep(0.01)
    child.kill()
    child.wait()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=Tower().layers)
    parser.add_argument("--at", type=float, default=0.9, help="share of the tensors that are finished before the kill")
    parser.add_argument("--folder", type=Path, default=CACHE / "resume", help="inputs and outputs; needs 8 GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    tower = Tower(layers=options.layers)
    work = make_towers(options.folder / f"inputs-{options.layers}", tower, N_TASKS)
    recipe = write_recipe(options.folder / "whole.yaml", work, params={"variant": "readout"})
    whole = merge(recipe, options.threads).spent.seconds
    output, cache = options.folder / "killed", options.folder / "factors"
    clear(output)
    forget_factors(cache)
    variables = environment(options.threads, cache)
    killed = merge_until(recipe, output, int(options.at * len(tower_shapes(tower))), variables)
    # Only the finished tensors may help, not cached factors.
    forget_factors(cache)
    command = (*merge_command(recipe, output), "--resume")
    resumed = must(command, options.folder / "resumed.log", variables).seconds
    same = filecmp.cmp(options.folder / "whole" / WEIGHTS, output / WEIGHTS, shallow=False)
    print("| run | time | share of the whole run |\n|---|---:|---:|")
    for title, seconds in (
        ("without interruption", whole), (f"killed at {options.at:.0%} of its tensors", killed), ("resumed", resumed),
    ):  # fmt: skip
        print(f"| {title} | {seconds:.1f} s | {seconds / whole:.2f} |")
    print(f"\nSame bytes: {'yes' if same else 'NO'}. {tower.layers} layers. {machine_line(options.threads)}")


if __name__ == "__main__":
    main()
