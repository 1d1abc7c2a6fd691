"""Our command line as a measured process, and what its report says."""

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
from sftm_app.weights.disk_cache import DiskCache
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.partial import partial_of

# Inputs, outputs and logs of every bench that needs gigabytes.
CACHE = Path.home() / ".cache" / "sftm-bench"
SFTM = (sys.executable, "-m", "sftm_app")


@dataclass(frozen=True)
class Merged:
    """A merge: what its process took, and from its report seconds in the layers, bytes taken and predicted, the worst
    residual of a layer (None if no system was solved), and seconds taken and predicted."""

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
    """The environment of a process whose cache is the folder `cache`."""
    return threads(n_threads) | {"SFTM_CACHE_DIR": str(cache)}


def merge(recipe: Path, n_threads: int) -> Merged:
    """Merge with an empty cache, into a folder next to the recipe, with its name.

    Raises:
        SystemExit: the merge failed; names its log.
    """
    output, cache = recipe.with_suffix(""), recipe.parent / "factors"
    clear(output)
    forget_factors(cache)
    spent = must(merge_command(recipe, output), recipe.with_suffix(".log"), environment(n_threads, cache))
    return read_report(output, spent)


def forget_factors(cache: Path) -> None:
    """Clear the cache, but not what it knows of this machine and of architectures, as for any second merge."""
    DiskCache(cache, 1).clear()


def clear(output: Path) -> None:
    """Remove what an earlier run wrote, and what a stopped run left, so that nothing is resumed."""
    for left in (output, partial_of(output)):
        shutil.rmtree(left, ignore_errors=True)


def must(command: tuple[str | Path, ...], log: Path, environment: Mapping[str, str]) -> Spent:
    """Run a command that must succeed. Raises SystemExit, with its log, if it does not."""
    spent = spend(command, log, environment, ROOT)
    if spent.code:
        raise SystemExit(f"The command ended with exit code {spent.code}: {log.read_text(encoding='utf-8')[-2000:]}")
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
