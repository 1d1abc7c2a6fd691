"""A Studio over a tiny pack, for handlers that are called as plain functions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTImageProcessor

from sftm_app.session import Session
from sftm_app.ui.loading import pack_workspace
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace


@pytest.fixture
def studio(tiny_models: Path, tmp_path: Path, session: Session) -> Studio:
    """Packs, models and output in folders of their own; nothing was merged yet."""
    pack = Path(shutil.copytree(tiny_models, tmp_path / "packs" / "tiny"))
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(pack / "base")
    tasks = []
    for seed, (name, n_labels) in enumerate({"a": 3, "b": 4, "c": 5}.items()):
        random = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (12, 8, 8), dtype=torch.uint8, generator=random)
        save_file({"images": images, "labels": torch.arange(12) % n_labels}, pack / f"{name}.safetensors")
        tasks.append({"name": name, "title": name.upper(), "path": name, "samples": f"{name}.safetensors"})
    content = {"name": "tiny", "title": "Tiny", "description": "Random.", "image": {"channels": 1}, "base": "base"}
    (pack / "pack.json").write_text(json.dumps(content | {"tasks": tasks}))
    output = tmp_path / "output"
    output.mkdir()
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    return Studio(Settings(models, output, tmp_path / "packs", "cpu"), session)


@pytest.fixture
def workspace(studio: Studio) -> Workspace:
    return pack_workspace(studio.packs[0])
