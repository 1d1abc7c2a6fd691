"""Our command line as a process that is measured, and what its report says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.accounting import Spent, spend, threads
from bench.reference import ROOT, Work
from sftm_app.engine.cache import FactorStore
from sftm_app.output.report import REPORT_NAME
from sftm_app.weights.partial import partial_of

# Inputs, outputs and logs of every bench that needs gigabytes.
CACHE = Path.home() / ".cache" / "sftm-bench"
SFTM = (sys.executable, "-m", "sftm_app")


@dataclass(frozen=True)
class Merged:
    """A merge: what its process took, and from its report: seconds in the layers, bytes that were taken and foretold,
    the worst residual of a layer (None where no system was solved), and seconds that were taken and foretold."""

    spent: Spent
    layer_seconds: float
    took_bytes: int
    predicted_bytes: int
    residual: float | None
    took_seconds: float
    predicted_seconds: float


def write_recipe(path: Path, work: Work, n_tasks: int | None = None, **rest: Any) -> Path:
    """A recipe for all or the first tasks of a work, on the CPU. rest: method, params, output."""
    recipe = {"base": str(work.base), "tasks": [str(task) for task in work.tasks[:n_tasks]], "device": "cpu", **rest}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def merge_command(recipe: Path, output: Path) -> tuple[str | Path, ...]:
    """The command that merges by a recipe."""
    return (*SFTM, "merge", recipe, "--output", output, "--quiet")


def environment(n_threads: int, cache: Path) -> dict[str, str]:
    """Of a process that may keep factors in `cache` and nowhere else."""
    return threads(n_threads) | {"SFTM_CACHE_DIR": str(cache)}


def merge(recipe: Path, n_threads: int) -> Merged:
    """Merge without factors of an earlier merge, into the folder of the recipe's name beside it.

    Raises
        SystemExit: the merge failed; names its log.
    """
    output, cache = recipe.with_suffix(""), recipe.parent / "factors"
    clear(output)
    forget_factors(cache)
    spent = must(merge_command(recipe, output), recipe.with_suffix(".log"), environment(n_threads, cache))
    return read_report(output, spent)


def forget_factors(cache: Path) -> None:
    """Remove what earlier merges kept of task matrices. What this machine is, and what transformers says of an
    architecture, stays known, as it does for anybody's second merge."""
    FactorStore(cache, 1).clear()


def clear(output: Path) -> None:
    """Remove what an earlier run wrote, and what one that was stopped left, so that nothing is gone on with."""
    for left in (output, partial_of(output)):
        shutil.rmtree(left, ignore_errors=True)


def must(command: tuple[str | Path, ...], log: Path, environment: Mapping[str, str]) -> Spent:
    """Run a command that has to succeed. Raises SystemExit, with its log, where it does not."""
    spent = spend(command, log, environment, ROOT)
    if spent.code:
        raise SystemExit(f"It ended with exit code {spent.code}: {log.read_text(encoding='utf-8')[-2000:]}")
    return spent


def read_report(output: Path, spent: Spent) -> Merged:
    """What the report of a merge says."""
    report = json.loads((output / REPORT_NAME).read_text(encoding="utf-8"))
    records, machine = report["tensors"], report["machine"]
    residuals = [record["figures"]["residual"] for record in records if "residual" in record["figures"]]
    return Merged(
        spent,
        sum(record["seconds"] for record in records),
        machine["memory_peak_bytes"],
        machine["memory_predicted_bytes"],
        max(residuals, default=None),
        report["seconds"],
        machine["seconds_predicted"],
    )
