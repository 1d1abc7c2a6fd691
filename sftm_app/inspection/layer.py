"""One layer in detail: the tasks' spectra, and how much the tasks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.factors import Factors, rank_for_energy
from sftm_app.linalg.overlap import effective_rank, energy_overlaps, gain_clusters, stable_rank

ENERGIES = (0.90, 0.95, 0.99)
CLUSTER_SENTENCE = (
    "Features whose gains are nearly equal can be mixed with one another at almost no change of the matrix, so a "
    "single vector among them means nothing by itself: only the space that they span together does."
)


@dataclass(frozen=True)
class Spectrum:
    """One task's singular spectrum: gains descending; ranks_for_energy maps 0.90, 0.95, 0.99 to feature counts.

    relative_change: ||D|| / ||W_0||, >= 0, infinite for a base of zeros. clusters: [start, stop) of features, counted
    from 0, whose gains are nearly equal (see CLUSTER_SENTENCE and linalg.subspace.gain_clusters).
    """

    task: str
    gains: tuple[float, ...]
    relative_change: float
    effective_rank: float
    stable_rank: float
    ranks_for_energy: dict[float, int]
    clusters: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class LayerDetail:
    """A layer's spectra and the overlap of every pair of tasks.

    read, write, both: float32 (T, T), 0..1, the overlap of read directions, of write directions, and of whole features,
    weighted by energy; see linalg.subspace.energy_overlaps. both is the overview of A: 1 where two tasks have the same
    features (up to sign) with the same shares of energy, and never more than the smaller of read and write.
    """

    name: str
    shape: tuple[int, int]
    spectra: tuple[Spectrum, ...]
    read: Tensor
    write: Tensor
    both: Tensor


def layer_detail(made: LayerFactors, task_names: Sequence[str]) -> LayerDetail:
    """Spectra and overlaps of one layer. `task_names` are those of the whole workspace."""
    spectra = tuple(
        _spectrum(task_names[member], factors, made.base_norm)
        for member, factors in zip(made.layer.members, made.factors, strict=True)
    )
    return LayerDetail(made.layer.name, made.layer.shape, spectra, *energy_overlaps(made.factors))


def _spectrum(task: str, factors: Factors, base_norm: float) -> Spectrum:
    S = factors.S
    return Spectrum(
        task,
        tuple(S.tolist()),
        float(torch.linalg.vector_norm(S)) / base_norm if base_norm else math.inf,
        effective_rank(S),
        stable_rank(S),
        {energy: rank_for_energy(S, energy) for energy in ENERGIES},
        gain_clusters(S),
    )
