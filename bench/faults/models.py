"""Tiny checkpoints without a config, so that a merge takes a tenth of a second and needs no transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.session import Session, open_session

N_LAYERS = 6


def make_models(root: Path, n_tasks: int = 2, side: int = 24) -> list[Path]:
    """Write a base and its tasks, and return their files: the base first."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(N_LAYERS):
        tensors[f"layers.{layer}.attention.weight"] = torch.randn(side, side, generator=generator)
        tensors[f"layers.{layer}.mlp.weight"] = torch.randn(2 * side, side, generator=generator)
        tensors[f"layers.{layer}.norm.weight"] = torch.ones(side)
    files = []
    for index in range(n_tasks + 1):
        folder = root / ("base" if index == 0 else f"task{index}")
        folder.mkdir(parents=True, exist_ok=True)
        own = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if index else tensor
            for name, tensor in tensors.items()
        }
        save_file(own, folder / "weights.safetensors", {"format": "pt"})
        files.append(folder / "weights.safetensors")
    return files


def recipe_of(files: list[Path], **changes: Any) -> Recipe:
    """A recipe of such models."""
    return make_recipe(files[0], files[1:], device="cpu", **changes)


def plain_session() -> Session:
    """A session without a cache."""
    return open_session(environment={"SFTM_CACHE_GB": "0"})
