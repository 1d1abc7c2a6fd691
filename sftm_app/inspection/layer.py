"""One layer in detail: the tasks' spectra, and how their features overlap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.subspace import (
    effective_rank,
    energy_overlap,
    overlap,
    random_overlap,
    rank_for_energy,
    stable_rank,
)

ENERGIES = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class Spectrum:
    """One task's singular spectrum: gains descending; ranks_for_energy maps 0.90, 0.95, 0.99 to feature counts."""

    task: str
    gains: tuple[float, ...]
    relative_change: float
    effective_rank: float
    stable_rank: float
    ranks_for_energy: dict[float, int]


@dataclass(frozen=True, eq=False)
class LayerDetail:
    """A layer's spectra and the overlap of every pair of tasks.

    read, write: float32 (T, T), 0..1; see linalg.subspace.energy_overlap.
    """

    name: str
    shape: tuple[int, int]
    spectra: tuple[Spectrum, ...]
    read: Tensor
    write: Tensor


@dataclass(frozen=True, eq=False)
class PairDetail:
    """|cosine| between the features of two tasks, strongest first: float32 (r_first, r_second), 0..1.

    random_read, random_write: the mean |cosine| of random directions in that many dimensions.
    """

    name: str
    first: str
    second: str
    read: Tensor
    write: Tensor
    random_read: float
    random_write: float


def layer_detail(made: LayerFactors, task_names: tuple[str, ...]) -> LayerDetail:
    """Spectra and pairwise overlaps of one layer. `task_names` are those of the whole workspace."""
    names = [task_names[i] for i in made.layer.members]
    spectra = tuple(
        Spectrum(
            name,
            tuple(f.S.tolist()),
            float(torch.linalg.vector_norm(f.S)) / made.base_norm if made.base_norm else float("inf"),
            float(effective_rank(f.S)),
            float(stable_rank(f.S)),
            {energy: int(rank_for_energy(f.S, energy)) for energy in ENERGIES},
        )
        for name, f in zip(names, made.factors, strict=True)
    )
    gains = [f.S for f in made.factors]
    read = energy_overlap([f.Vh.T for f in made.factors], gains)
    write = energy_overlap([f.U for f in made.factors], gains)
    return LayerDetail(made.layer.name, made.layer.shape, spectra, read, write)


def pair_detail(made: LayerFactors, task_names: tuple[str, ...], first: int, second: int) -> PairDetail:
    """Overlap of the features of two tasks, by their positions among the layer's members."""
    a, b = made.factors[first], made.factors[second]
    m, n = made.layer.shape
    return PairDetail(
        made.layer.name,
        task_names[made.layer.members[first]],
        task_names[made.layer.members[second]],
        overlap(a.Vh.T, b.Vh.T),
        overlap(a.U, b.U),
        random_overlap(n),
        random_overlap(m),
    )
