"""The superposition in float64 by the book, to compare merged files with: slow, and without any of the app's engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """One layer's change: relative difference in the Frobenius norm, by title of the merge."""

    name: str
    off: dict[str, float]


def exact_change(matrices: Sequence[Tensor], rank: int | None) -> Tensor:
    """D* (m, n) of the variant `readout` for task matrices (m, n), float64: SVD, the whole system, Cholesky.

    rank: leading features kept of each; None keeps all. Raises torch.linalg.LinAlgError where tasks share features
    exactly, for then the system is singular.
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
    """What merged files hold for some layers, beside the float64 change.

    merges: title -> (folder of the merged model, rank or None, scaling). All models lie in one file each.
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
