"""Searches over tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ViTImageProcessor

from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session
from sftm_app.tuning.setup import Setup, make_setup

METHODS = ("sftm", "average", "task_arithmetic")


@pytest.fixture(scope="session")
def classifiers(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with an image processor."""
    models = Path(shutil.copytree(tiny_models, tmp_path_factory.mktemp("classifiers") / "models"))
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        models / "base"
    )
    return models


@pytest.fixture(scope="session")
def samples() -> dict[str, Samples]:
    """Random images for two of the three tasks."""
    random = np.random.default_rng(1)
    return {
        task: ImageSamples(random.integers(0, 256, (30, 8, 8)).astype(np.uint8), np.arange(30) % 3)
        for task in ("a", "b")
    }


@pytest.fixture
def setup_in(classifiers: Path, samples: dict[str, Samples], session: Session) -> Callable[..., Setup]:
    """A function that sets up a search in a folder; it takes the keyword arguments of make_setup."""
    recipe = make_recipe(classifiers / "base", [classifiers / task for task in "abc"], device="cpu")
    found = open_inputs(recipe, session).require()

    def build(folder: Path, **changes: Any) -> Setup:
        return make_setup(
            found, **({"samples": samples, "session": session, "searches": folder, "methods": METHODS} | changes)
        )

    return build
