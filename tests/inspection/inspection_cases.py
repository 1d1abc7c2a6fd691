"""What the tests of this folder share: the tiny models' layers, layers of given matrices, and slow direct formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.layers import MapLayer, map_layers
from sftm_app.inspection.survey import find_layer
from sftm_app.linalg.svd import factorise
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import open_session

NAME = "encoder.layer.1.intermediate.dense.weight"
NAMES = ("a", "b", "c")

SVD = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


# Opened once, so that the tiny model's architecture is looked up once.
SESSION = open_session(environment={"SFTM_CACHE_GB": "0"})


def opened(recipe: Recipe) -> Preflight:
    return open_inputs(recipe, SESSION).require()


def preflight_of(models: Path) -> Preflight:
    return opened(make_recipe(models / "base", [models / name for name in NAMES]))


def layer_of(found: Preflight, name: str = NAME) -> MapLayer:
    return find_layer(map_layers(found), name)


def direct(models: Path, name: str = NAME) -> tuple[NDArray[np.float64], list[SVD]]:
    """The base's weight and each task's SVD, in float64, from the files."""
    base = load_file(models / "base" / "model.safetensors")[name].double().numpy()
    base = base.reshape(base.shape[0], -1)
    parts = []
    for task in NAMES:
        weight = load_file(models / task / "model.safetensors")[f"vit.{name}"].double().numpy()
        parts.append(np.linalg.svd(weight.reshape(base.shape) - base, full_matrices=False))
    return base, parts


def made_of(
    *matrices: Tensor, base_norm: float = 1.0, members: Sequence[int] | None = None, base: Tensor | None = None
) -> LayerFactors:
    """A layer of these task matrices (m, n), factorised as those of files are. base: its weight."""
    m, n = matrices[0].shape
    members = tuple(range(len(matrices))) if members is None else tuple(members)
    layer = MapLayer("x.weight", "outside", "x", (m, n), "x.weight", Part(), members)
    weight = torch.ones(m, n) if base is None else base
    factors = tuple(factorise(matrix) for matrix in matrices)
    return LayerFactors(layer, base_norm, factors, lambda: weight, task_names=tuple(map(str, members)))


def gaussian(m: int, n: int, seed: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed)))[0]


def with_features(U: Tensor, gains: Sequence[float], V: Tensor) -> Tensor:
    """sum_k s_k u_k v_k^T of the first columns of U (m, ..) and V (n, ..), float32."""
    r = len(gains)
    return (U[:, :r] * torch.tensor(gains)) @ V[:, :r].T
