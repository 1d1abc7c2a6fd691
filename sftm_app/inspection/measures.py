"""What the map is coloured by: one number per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.subspace import effective_rank, energy_overlap


@dataclass(frozen=True)
class Measure:
    """A measure: its name in links and files, its title, what it says, and the function that computes it."""

    name: str
    title: str
    help: str
    compute: Callable[[LayerFactors], float]


def relative_change(made: LayerFactors) -> float:
    """Mean over tasks of ||D_t|| / ||W_0|| (Frobenius), >= 0; infinite for a base of zeros."""
    if not made.base_norm:
        return math.inf
    return _mean([float(torch.linalg.vector_norm(f.S)) / made.base_norm for f in made.factors])


def mean_effective_rank(made: LayerFactors) -> float:
    """Mean over tasks of the effective rank as a share of min(m, n), 0..1."""
    return _mean([effective_rank(f.S) / min(f.shape) for f in made.factors])


def read_overlap(made: LayerFactors) -> float:
    """Mean over pairs of tasks of the energy overlap of their read directions, 0..1; 0 for a single task.

    The numbers of the layer's task overlap (linalg.subspace.energy_overlap), without its diagonal.
    """
    return _mean_of_pairs(energy_overlap([f.Vh.T for f in made.factors], [f.S for f in made.factors]))


def write_overlap(made: LayerFactors) -> float:
    """The same for write directions."""
    return _mean_of_pairs(energy_overlap([f.U for f in made.factors], [f.S for f in made.factors]))


def _mean_of_pairs(table: torch.Tensor) -> float:
    """Mean of the entries off the diagonal of (T, T)."""
    count = len(table)
    return float(table.sum() - table.diagonal().sum()) / (count * (count - 1)) if count > 1 else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "change",
            "Relative change",
            "How large the tasks' changes are beside the base's weight: mean of ‖D‖ / ‖W₀‖.",
            relative_change,
        ),
        Measure(
            "effective_rank",
            "Effective rank",
            "How many directions the changes really use, as a share of all: 0 is one direction, 1 is all equally.",
            mean_effective_rank,
        ),
        Measure(
            "read_overlap",
            "Read overlap",
            "How alike the input directions are that the tasks listen to, weighted by energy: 1 means the same "
            "directions to the same shares, 0 none in common. Mean over pairs of tasks.",
            read_overlap,
        ),
        Measure(
            "write_overlap",
            "Write overlap",
            "How alike the output directions are that the tasks write to, weighted by energy: 1 means the same "
            "directions to the same shares, 0 none in common. Mean over pairs of tasks.",
            write_overlap,
        ),
    )
}
