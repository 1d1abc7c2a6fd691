"""Merge LoRA adapters into one adapter: `python -m bench.adapters [--layers 30] [--ranks 8,16,32]`.

Uses the shapes of SmolLM2-135M, with 8 adapters on all seven linear maps of each layer. Prints two Markdown tables: the
direct way compared with the ways through full models, and how the time grows with the adapters' rank and the model's
width.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

from bench.accounting import Spent
from bench.machine import machine_line
from bench.ours import CACHE, SFTM, Merged, environment, merge, must, write_recipe
from bench.reference import Language, Work, densify, make_adapters

N_TASKS, RANK, FEW_LAYERS = 8, 16, 10
READOUT = {"variant": "readout"}
ADAPTER, MODEL = {"kind": "adapter"}, {"kind": "model"}


def extract(recipe: Path, work: Work, n_threads: int) -> Spent:
    """Extract an adapter of the adapters' total rank from the merged model that `recipe` made."""
    model, output = recipe.with_suffix(""), recipe.with_suffix(".extracted")
    shutil.rmtree(output, ignore_errors=True)
    rank = ("--rank", str(N_TASKS * RANK), "--output", output, "--device", "cpu", "--quiet")
    command = (*SFTM, "extract", "--base", work.base, "--task", model, *rank)
    return must(command, recipe.with_suffix(".extract.log"), environment(n_threads, recipe.parent / "factors"))


def dense_work(work: Work, folder: Path) -> Work:
    """The same tasks as full models, each with its adapter folded in."""
    tasks = tuple(folder / task.name for task in work.tasks)
    for adapter, model in zip(work.tasks, tasks, strict=True):
        if not (model / "model.safetensors").exists():
            shutil.rmtree(model, ignore_errors=True)
            densify(adapter, work.base, model)
    return replace(work, tasks=tasks)


def routes(folder: Path, language: Language, n_threads: int) -> None:
    """Print the first table."""
    work = make_adapters(folder / f"inputs-{language.layers}-{RANK}", language, N_TASKS, RANK)
    print("| way | merge | extract | together | relative to the first | peak memory |\n|---|---:|---:|---:|---:|---:|")
    dense = dense_work(work, folder / f"dense-{language.layers}")
    ways = {
        "8 full models, each with its adapter folded in; then `extract`": (
            write_recipe(folder / "dense.yaml", dense, params={**READOUT, "rank": RANK}, output=MODEL),
            True,
        ),
        "8 adapters into a full model; then `extract`": (
            write_recipe(folder / "model.yaml", work, params=READOUT, output=MODEL),
            True,
        ),
        "**8 adapters into one adapter**": (
            write_recipe(folder / "adapter.yaml", work, params=READOUT, output=ADAPTER),
            False,
        ),
    }  # fmt: skip
    whole = None
    for title, (recipe, extracted) in ways.items():
        merged = merge(recipe, n_threads).spent
        then = extract(recipe, work, n_threads) if extracted else None
        seconds = merged.seconds + (then.seconds if then else 0)
        whole = whole or seconds
        peak = max(merged.peak_bytes, then.peak_bytes if then else 0)
        print(
            f"| {title} | {merged.seconds:.1f} s | {f'{then.seconds:.1f} s' if then else ''} | {seconds:.1f} s "
            f"| {seconds / whole:.2f} | {peak / 1e6:.0f} MB |",
            flush=True,
        )


def growth(folder: Path, language: Language, ranks: list[int], n_threads: int) -> None:
    """Print the second table: rank by rank, then with few layers, then with few layers of twice the width."""
    print("| layers | widths | rank | time | in the layers | relative to the row above | peak memory |")
    print("|---|---|---:|---:|---:|---:|---:|")
    few = replace(language, layers=min(FEW_LAYERS, language.layers))
    wide = replace(
        few, hidden=2 * few.hidden, intermediate=2 * few.intermediate, heads=2 * few.heads, key_heads=2 * few.key_heads
    )
    above: Merged | None = None
    for shape, rank in [*((language, rank) for rank in ranks), (few, RANK), (wide, RANK)]:
        name = f"{shape.layers}-{shape.hidden}-{rank}" if shape is wide else f"{shape.layers}-{rank}"
        work = make_adapters(folder / f"inputs-{name}", shape, N_TASKS, rank)
        found = merge(write_recipe(folder / f"adapter-{name}.yaml", work, params=READOUT, output=ADAPTER), n_threads)
        times = f"{found.layer_seconds / above.layer_seconds:.1f}" if above and shape is not few else ""
        print(
            f"| {shape.layers} | {shape.hidden}, {shape.intermediate} | {rank} | {found.spent.seconds:.1f} s "
            f"| {found.layer_seconds:.2f} s | {times} | {found.spent.peak_bytes / 1e6:.0f} MB |",
            flush=True,
        )
        above = found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=Language().layers)
    parser.add_argument("--ranks", default="8,16,32", help="ranks of the adapters in the second table")
    parser.add_argument("--folder", type=Path, default=CACHE / "adapters", help="inputs and outputs; needs 8 GB")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    language = Language(layers=options.layers)
    routes(options.folder, language, options.threads)
    print()
    growth(options.folder, language, [int(rank) for rank in options.ranks.split(",")], options.threads)
    print(f"\n{N_TASKS} adapters. {machine_line(options.threads)}")


if __name__ == "__main__":
    main()
