"""The merges that are compared, and a merged model with one task's head."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from bench.real.stages import measured, merge

# The title, and the options added to `merge recipe.yaml` on the command line.
MERGES = {
    "sftm": ("SFTM, defaults", ()),
    "sftm-half": ("SFTM, scaling 0.5", ("--set", "scaling=0.5")),
    "sftm-rank": ("SFTM, rank 5%", ("--set", "rank=5%")),
    "sftm-mapping": ("SFTM, mapping", ("--set", "variant=mapping")),
    "average": ("Plain average", ("--method", "average")),
    "task-arithmetic": ("Task arithmetic, its default scaling", ("--method", "task_arithmetic")),
    "task-arithmetic-1": ("Task arithmetic, scaling 1", ("--method", "task_arithmetic", "--set", "scaling=1.0")),
}
TITLES = {"base": "Base with the probe's head", "individual": "Individual"}
TITLES |= {key: title for key, (title, _) in MERGES.items()}


def merge_all(recipe: Path, keys: Sequence[str] = tuple(MERGES)) -> dict[str, Path]:
    """Run merges with the command line into `merged/` next to the recipe. Returns the folders by key."""
    return {key: merge(recipe, recipe.parent / "merged" / key, *MERGES[key][1]) for key in keys}


def accuracies(
    merged: dict[str, Path], tasks: list[Path], measure: Callable[[Path], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Held-out accuracies by model and task.

    Args:
        merged: folders of merged models by key.
        tasks: folders of task models, with the accuracies of base and individual model in measured.json.
        measure: gives the accuracies of one merged folder by task.
    """
    own = {folder.name: json.loads((folder / "measured.json").read_text(encoding="utf-8")) for folder in tasks}
    found = {key: {name: values[key] for name, values in own.items()} for key in ("base", "individual")}
    for key, folder in merged.items():
        kept = folder.parent.parent / "measured" / f"{key}.json"
        found[key] = measured(kept, partial(measure, folder))
    return found


def with_head(model_class: Any, merged: Path, name: str) -> nn.Module:
    """The merged model with the head of task `name`, added as the model card describes."""
    config = AutoConfig.from_pretrained(merged / "heads" / f"{name}.json")
    model: nn.Module = model_class.from_pretrained(merged, config=config)
    unexpected = model.load_state_dict(load_file(merged / "heads" / f"{name}.safetensors"), strict=False)[1]
    assert not unexpected, unexpected
    return model
