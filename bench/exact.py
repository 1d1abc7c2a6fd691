"""The superposition in float64, straight from its definition and without the app's engine, to check merged files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """How far merges are from the float64 result in one layer.

    Attributes:
        name: the layer's tensor.
        off: the relative difference in the Frobenius norm, by title of the merge.
    """

    name: str
    off: dict[str, float]


def exact_change(matrices: Sequence[Tensor], rank: int | None) -> Tensor:
    """The merged matrix D* of the variant `readout`, by SVD and a Cholesky factorisation of the whole system.

    Args:
        matrices: task matrices (m, n).
        rank: how many features of each task to use; None uses all.

    Returns:
        float64 (m, n).

    Raises:
        torch.linalg.LinAlgError: the system is singular, because tasks share features exactly.
    """
    parts = [torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in matrices]
    U = torch.cat([part.U[:, :rank] for part in parts], dim=1)
    Vh = torch.cat([part.Vh[:rank] for part in parts])
    gains = torch.cat([part.S[:rank] for part in parts])
    system = (U.T @ U).mul_(Vh @ Vh.T)
    lower = torch.linalg.cholesky(system)
    coefficients = torch.cholesky_solve(gains[:, None], lower).squeeze(1)
    return (U * coefficients) @ Vh


def compare(
    base: Path, tasks: Sequence[Path], merges: dict[str, tuple[Path, int | None, float]], names: Sequence[str]
) -> list[Compared]:
    """Compare merged files with the float64 result.

    Args:
        base, tasks: folders of models in one file each.
        merges: title -> (folder of the merged model, rank or None, scaling).
        names: the layers to compare.
    """
    compared = []
    for name in names:
        origin = read(base, name)
        matrices = [read(task, name) - origin for task in tasks]
        changes = {rank: exact_change(matrices, rank) for rank in {rank for _, rank, _ in merges.values()}}
        off = {}
        for title, (folder, rank, scaling) in merges.items():
            wanted = scaling * changes[rank]
            off[title] = float((read(folder, name) - origin - wanted).norm() / wanted.norm())
        compared.append(Compared(name, off))
    return compared


def read(folder: Path, name: str) -> Tensor:
    """A tensor of a model in one file, as a float64 matrix (m, n)."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.double().reshape(len(tensor), -1)
