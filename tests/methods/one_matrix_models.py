"""Checkpoint folders of a Llama with one large matrix and little else, made without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

UP, TABLE, NORM = "layers.0.mlp.up_proj.weight", "embed_tokens.weight", "norm.weight"
ROWS = 12


def save_models(root: Path, shape: tuple[int, int], n_tasks: int, louder_rows: int = 0) -> list[dict[str, Tensor]]:
    """Save `base`, and tasks `0`, `1`, ... in `root`.

    Args:
        root: an existing folder.
        shape: of the matrix UP.
        n_tasks: how many tasks.
        louder_rows: so many rows of UP change twenty times as much as the others, in the first task.

    Returns:
        The tensors of the base, then of each task.
    """
    m, n = shape
    config = {"model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": n, "num_hidden_layers": 1}
    config |= {"intermediate_size": m, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": ROWS}
    generator = torch.Generator().manual_seed(0)
    shapes = {UP: shape, TABLE: (ROWS, n), NORM: (n,)}
    base = {name: 0.05 * torch.randn(size, generator=generator) for name, size in shapes.items()}
    models = [base]
    for _ in range(n_tasks):
        models.append({name: t + 0.01 * torch.randn(t.shape, generator=generator) for name, t in base.items()})
    if louder_rows:
        models[1][UP][:louder_rows] += 19 * (models[1][UP] - base[UP])[:louder_rows]
    for folder, tensors in zip(folders(root, n_tasks), models, strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors")
    return models


def folders(root: Path, n_tasks: int) -> Sequence[Path]:
    """The base's folder, then those of the tasks."""
    return [root / "base", *(root / str(task) for task in range(n_tasks))]
