"""What the text packs share: the command line, the samples and pack.json."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.demo_packs.writing import write_json

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"

Figures = dict[str, dict[str, float]]


def quick(settings: Any) -> Any:
    """The settings of a smoke test: every stage, hardly any work."""
    short = {name: replace(getattr(settings, name), steps=3, batch=8) for name in ("base", "task")}
    return replace(settings, n_samples=10, **short)


def command(name: str, settings: Any, make: Callable[[Any, Path, Path], Figures]) -> None:
    """The command line of a text pack.

    Args:
        name: of the pack.
        settings: its settings.
        make: takes settings, cache and output folder, runs all stages and measures.
    """
    parser = argparse.ArgumentParser(description=f"Train and write the demo pack `{name}`.")
    parser.add_argument("--quick", action="store_true", help="a few steps only, into <cache>/quick: a smoke test")
    default = Path(tempfile.gettempdir()) / "text_packs_cache"
    parser.add_argument("--cache", type=Path, default=default, help="downloads and finished stages")
    parser.add_argument("--output", type=Path, default=None, help=f"folder of the pack (default: assets/demo/{name})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one thread: the same files every time, and no contention on a busy machine
    torch.use_deterministic_algorithms(True)
    output = arguments.output or (arguments.cache / "quick" if arguments.quick else ASSETS) / name
    started = time.perf_counter()
    figures = make(quick(settings) if arguments.quick else settings, arguments.cache, output)
    for who, row in figures.items():
        print(f"{who:10s} " + "  ".join(f"{task} {value:.3f}" for task, value in row.items()))
    print(f"wrote {output} in {time.perf_counter() - started:.0f} s")


def write_samples(path: Path, pairs: Sequence[tuple[str, str]], choices: Sequence[str] | None) -> None:
    """Write held-out inputs and targets. choices: None if the model writes freely."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    write_json(path, {"inputs": inputs, "targets": targets, "choices": choices and list(choices)})


def task_entry(name: str, title: str, description: str, n_samples: int, path: str | None) -> dict[str, Any]:
    """One entry of `tasks`, or of `unseen` if there is no checkpoint."""
    entry: dict[str, Any] = {"name": name, "title": title, "description": description}
    if path is not None:
        entry["path"] = path
    return {**entry, "samples": f"samples/{name}.json", "n_samples": n_samples}


def fresh_folder(pack: Path) -> Path:
    """An empty folder next to `pack` to write into."""
    partial = pack.with_name(pack.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish(partial: Path, pack: Path, content: dict[str, Any]) -> None:
    """Write pack.json and move the folder into place."""
    write_json(partial / "pack.json", content)
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    shutil.rmtree(pack, ignore_errors=True)
    partial.rename(pack)
