"""Pools of the models in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftm_app.evaluation.candidates import ModelPool
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import open_session

SESSION = open_session("cpu", environment={"SFTM_CACHE_GB": "0"})


def inputs_of(base: Path, tasks: Any) -> Preflight:
    """Base and tasks, opened and compared. tasks: as for make_recipe."""
    return open_inputs(make_recipe(base, tasks), SESSION)


def pool_of(models: Path, *tasks: str) -> ModelPool:
    """A pool over `models`/base and these tasks; by default every other folder of `models`."""
    names = tasks or sorted(path.name for path in models.iterdir() if path.name != "base")
    return ModelPool(inputs_of(models / "base", [models / name for name in names]), SESSION)
