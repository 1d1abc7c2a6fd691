"""One layer in detail: the tasks' spectra, and how much the tasks have in common."""

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
    "Features with nearly equal gains can be mixed with almost no change of the matrix. Individual features in this "
    "group are not unique; only the subspace they span is."
)


@dataclass(frozen=True)
class Spectrum:
    """One task's singular spectrum.

    Attributes:
        task: its name.
        gains: descending.
        relative_change: ||D|| / ||W_0||, >= 0, infinite for a base of zeros.
        effective_rank, stable_rank: see linalg.overlap.
        ranks_for_energy: 0.90, 0.95, 0.99 -> number of features.
        clusters: [start, stop) of features, counted from 0, with nearly equal gains; see CLUSTER_SENTENCE.
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

    Attributes:
        name, shape: of the layer, (m, n).
        spectra: one per task that holds it.
        read, write, both: float32 (T, T) in 0..1, the overlap of read directions, of write directions, and of whole
            features, weighted by energy; see linalg.overlap.energy_overlaps. `both` is the overview of A.
    """

    name: str
    shape: tuple[int, int]
    spectra: tuple[Spectrum, ...]
    read: Tensor
    write: Tensor
    both: Tensor


def layer_detail(made: LayerFactors, task_names: Sequence[str]) -> LayerDetail:
    """Compute spectra and overlaps of one layer.

    Args:
        made: the layer, factorised.
        task_names: of the whole workspace.
    """
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
