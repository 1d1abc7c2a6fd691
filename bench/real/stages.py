"""What the benches share: cached stages, recipes and samples for the app, and Markdown tables."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import logging


def set_up() -> None:
    """Use one torch thread, contact no model hub, and show no progress bars."""
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    # Otherwise every head that is added later would be reported as missing.
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def stage(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make `folder` if it does not exist. It appears complete or not at all."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        print(f"Making {folder}", flush=True)
        make(partial)
        partial.rename(folder)
    return folder


def measured(path: Path, measure: Callable[[], Any]) -> Any:
    """The content of the JSON file `path`, measured and written first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure())
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON. The file appears complete or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


def write_recipe(path: Path, base: Path, tasks: Sequence[Path], **rest: Any) -> Path:
    """Write a recipe with paths relative to its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"path": os.path.relpath(task, path.parent), "name": task.name} for task in tasks]
    content = {"base": os.path.relpath(base, path.parent), "tasks": entries, **rest}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def write_samples(path: Path, inputs: Sequence[str], targets: Sequence[str], choices: Sequence[str]) -> None:
    """Write labelled sentences in the format of the Evaluate tab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"inputs": list(inputs), "targets": list(targets), "choices": list(choices)})


def table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table. rows: a title and one text per column."""
    lines = [f"| {first} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])
