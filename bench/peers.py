"""Compare with other tools on the same files, in turn: `python -m bench.peers [--quick] [--rounds 3]`.

Makes the reference work (bench.reference) and an environment with FusionBench and mergekit (bench.peer_environment) if
--folder and --env do not hold them yet. Then it runs every job as a process of its own, one after the other, round
after round, so that whatever else the machine does hits them all. Prints Markdown tables. The folder keeps every figure
and what every command printed. Inputs are read once before, so they come from memory and not from a disk.

Our merges start with an empty cache, except those called "again", which find what the merge at full rank cached. What
transformers says of the architecture is cached for all; asking takes seconds at a machine's first merge of a kind.
`--quick` makes one round of a tower of two layers. `--jobs full,tsvm` runs some jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.accounting import spend
from bench.exact import compare
from bench.machine import machine_line
from bench.ours import CACHE, clear, environment, forget_factors, merge_command, read_report, write_recipe
from bench.peer_environment import Environment, peer_environment
from bench.peer_tables import (
    AGAIN,
    AGAIN_LOW,
    AGAIN_WEIGHTS,
    DEFAULT,
    FLOOR,
    FULL,
    LOW,
    OURS_ISO,
    OURS_TA,
    OURS_TIES,
    OURS_TSVM,
    TA,
    TIES,
    TITLES,
    TSVM,
    Run,
    goal_table,
    predicted_table,
    work_table,
)
from bench.reference import ROOT, Tower, Work, make_towers
from sftm_app.weights.file_names import REPORT_NAME

N_TASKS, N_QUICK_LAYERS = 8, 2
HERE = Path(__file__).resolve().parent
# One of each shape, from below, within and above.
COMPARED = ("{0}.self_attn.q_proj", "{1}.mlp.fc1", "{2}.mlp.fc2")
SCALING, DENSITY, AGAIN_SCALING = 0.3, 0.2, 0.5


@dataclass(frozen=True)
class Job:
    """One command. peer: the package it needs. cache: the job whose cache it uses; one that names itself clears it."""

    name: str
    command: tuple[str | Path, ...]
    peer: str | None = None
    cache: str = ""


def jobs(work: Work, folder: Path, python: Path) -> list[Job]:
    """Every job, in the order of a round. Writes their settings into `folder`."""
    weights = [model / "model.safetensors" for model in (work.base, *work.tasks)]
    first, *others = map(str, work.tasks)
    weighted = [{"path": first, "weight": 0.5}, *others]
    readout = {"variant": "readout"}
    made = [
        Job(FLOOR, (sys.executable, "-I", "-S", HERE / "peer_floor.py", folder / FLOOR, *weights)),
        _mergekit(TA, "task_arithmetic", {"weight": SCALING}, weights, folder, python),
        _ours(OURS_TA, work, folder, "task_arithmetic", {"scaling": SCALING}),
        _mergekit(TIES, "ties", {"weight": SCALING, "density": DENSITY}, weights, folder, python),
        _ours(OURS_TIES, work, folder, "ties", {"scaling": SCALING, "density": DENSITY}),
        Job(TSVM, (python, HERE / "peer_tsvm.py", folder / TSVM, work.base, *work.tasks), "FusionBench"),
        _ours(DEFAULT, work, folder, "sftm", {}),
        _ours(OURS_TSVM, work, folder, "tsv_m", {}),
        _ours(OURS_ISO, work, folder, "iso_c", {}),
        _ours(FULL, work, folder, "sftm", readout),
        _ours(AGAIN, work, folder, "sftm", {**readout, "scaling": AGAIN_SCALING}, FULL),
        _ours(AGAIN_WEIGHTS, work, folder, "sftm", readout, FULL, tasks=weighted),
        _ours(AGAIN_LOW, work, folder, "sftm", {**readout, "rank": 1 / len(work.tasks)}, FULL),
        _ours(LOW, work, folder, "sftm", {**readout, "rank": 1 / len(work.tasks)}),
    ]
    assert {job.name for job in made} == set(TITLES)
    return made


def _ours(
    name: str, work: Work, folder: Path, method: str, params: dict[str, Any], cache: str = "", **rest: Any
) -> Job:
    recipe = write_recipe(folder / f"{name}.yaml", work, method=method, params=params, **rest)
    return Job(name, merge_command(recipe, folder / name), cache=cache or name)


def _mergekit(
    name: str, method: str, params: dict[str, float], weights: Sequence[Path], folder: Path, python: Path
) -> Job:
    settings = {
        "merge_method": method,
        "base_model": str(weights[0]),
        "models": [{"model": str(file), "parameters": params} for file in weights[1:]],
        # Its default divides TIES by the sum of weights; a sum takes the same time.
        "dtype": "float32",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return Job(name, (python.with_name("mergekit-pytorch"), folder / f"{name}.yaml", folder / name), "mergekit")


def run(job: Job, round_number: int, folder: Path, n_threads: int) -> Run:
    """Run a job; its output stays until it is run again."""
    output, cache = folder / job.name, folder / "factors"
    clear(output)
    if job.cache == job.name:
        forget_factors(cache)
    spent = spend(job.command, folder / f"{job.name}-{round_number}.log", environment(n_threads, cache), ROOT)
    report = read_report(output, spent) if job.cache and not spent.code else None
    failed = f", FAILED with exit code {spent.code}" if spent.code else ""
    print(
        f"round {round_number}, {job.name}: {spent.seconds:.1f} s, {spent.peak_bytes / 1e6:.0f} MB{failed}", flush=True
    )
    took = (job.name, spent.code, spent.seconds, spent.cpu_seconds, spent.peak_bytes)
    if report is None:
        return Run(*took)
    times = (report.took_seconds, report.predicted_seconds)
    return Run(*took, report.residual, *times, report.took_bytes, report.predicted_bytes)


def read_once(file: Path) -> None:
    """Read a file once, so that the system keeps it in memory if there is room."""
    with file.open("rb", buffering=0) as data:
        while data.read(1 << 24):
            pass


def off_exact(work: Work, tower: Tower, folder: Path) -> dict[str, list[float]]:
    """How far the merged files are from the float64 delta, for some layers: job -> relative differences."""
    low = tower.hidden // len(work.tasks)
    settings = {FULL: (None, 1.0), AGAIN: (None, AGAIN_SCALING), AGAIN_LOW: (low, 1.0), LOW: (low, 1.0)}
    merges = {job: (folder / job, *how) for job, how in settings.items() if (folder / job / REPORT_NAME).exists()}
    places = (0, tower.layers // 2, tower.layers - 1)
    names = [f"vision_model.encoder.layers.{name.format(*places)}.weight" for name in COMPARED]
    compared = compare(work.base, work.tasks, merges, names) if merges else []
    return {job: [one.off[job] for one in compared] for job in merges}


@dataclass(frozen=True)
class Measured:
    """What the tables are made of, see work_table."""

    runs: list[Run]
    missing: dict[str, str]
    off: dict[str, list[float]]


def measure(
    tower: Tower, folder: Path, peers: Environment, names: Sequence[str], n_rounds: int, n_threads: int
) -> Measured:
    """Run the named jobs in turn, round after round. `runs.json` in the folder holds every figure so far."""
    work = make_towers(folder / "inputs", tower, N_TASKS)
    chosen = [job for job in jobs(work, folder, peers.python) if job.name in names]
    missing = {job.name: peers.missing[job.peer] for job in chosen if job.peer in peers.missing}
    runs: list[Run] = []
    for model in (work.base, *work.tasks):
        read_once(model / "model.safetensors")
    for number in range(n_rounds):
        for job in chosen:
            if job.name not in missing:
                runs.append(run(job, number + 1, folder, n_threads))
                (folder / "runs.json").write_text(json.dumps([asdict(one) for one in runs], indent=1))
    return Measured(runs, missing, off_exact(work, tower, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=CACHE / "peers", help="inputs, outputs and logs; needs 12 GB")
    parser.add_argument("--env", type=Path, default=CACHE / "env", help="the peers' own environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every process (default: all)")
    parser.add_argument("--quick", action="store_true", help="one round of a tower of two layers")
    parser.add_argument("--jobs", default=",".join(TITLES), help="some of them, by name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tower = Tower(layers=N_QUICK_LAYERS) if options.quick else Tower()
    folder = options.folder / ("quick" if options.quick else "full")
    load = os.getloadavg()[0]
    n_rounds = 1 if options.quick else options.rounds
    measured = measure(tower, folder, peer_environment(options.env), options.jobs.split(","), n_rounds, options.threads)
    print(f"\n{work_table(measured.runs, measured.missing, measured.off)}\n\n{goal_table(measured.runs)}\n")
    print(f"{predicted_table(measured.runs)}\n")
    print(
        f"{N_TASKS} tasks, {tower.layers} layers, rounds: {n_rounds}, load of the machine before {load:.1f}, "
        f"after {os.getloadavg()[0]:.1f}. {machine_line(options.threads)}"
    )


if __name__ == "__main__":
    main()
