"""What the map is coloured by: one number per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.subspace import effective_rank, overlap


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
    """Mean over pairs of tasks of the energy-weighted squared overlap of read directions; see _shared_energy."""
    return _shared_energy([f.Vh.T for f in made.factors], [f.S for f in made.factors])


def write_overlap(made: LayerFactors) -> float:
    """The same for write directions."""
    return _shared_energy([f.U for f in made.factors], [f.S for f in made.factors])


def _shared_energy(directions: list[torch.Tensor], gains: list[torch.Tensor]) -> float:
    """Mean over pairs of sum_kl p_k q_l cos^2(x_k, y_l), p and q the features' shares of energy; 0..1.

    1 / dimension is what random directions give; 1 means that both tasks use one and the same direction.
    """
    values = []
    for i in range(len(directions)):
        for j in range(i):
            p, q = gains[i].square(), gains[j].square()
            if p.numel() and q.numel():
                cosines = overlap(directions[i], directions[j]).square()
                values.append(float((p / p.sum()) @ cosines @ (q / q.sum())))
    return _mean(values)


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
            "How far the tasks listen to the same input directions, weighted by energy: 1 means all to one.",
            read_overlap,
        ),
        Measure(
            "write_overlap",
            "Write overlap",
            "How far the tasks write to the same output directions, weighted by energy: 1 means all to one.",
            write_overlap,
        ),
    )
}
