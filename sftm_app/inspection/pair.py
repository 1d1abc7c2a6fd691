"""Two tasks in one layer: their features against each other, and the angles between the spans of the strongest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.factors import rank_for_energy
from sftm_app.linalg.overlap import principal_angles, random_overlap, random_principal_angles

ANGLE_ENERGY = 0.90
MOST_ANGLES = 64


@dataclass(frozen=True, eq=False)
class PairAngles:
    """Principal angles between the spans of two tasks' first k features: (k,) float64, ascending, degrees in 0..90.

    0 is a direction that both spans hold, 90 one that only one of them holds.

    Attributes:
        k: how many features span each subspace.
        read, write: between read and between write directions.
        random_read, random_write: what random subspaces of k dimensions would show.
    """

    k: int
    read: Tensor
    write: Tensor
    random_read: Tensor
    random_write: Tensor


@dataclass(frozen=True, eq=False)
class PairDetail:
    """The features of two tasks against each other, strongest first.

    Attributes:
        name: the layer's.
        first, second: the tasks' names.
        read, write: float32 (r_first, r_second), |cosine| of read and of write directions, 0..1.
        both: the same shape, signed, -1..1: entries of A, what a unit of one feature adds to the other's readout.
        random_read, random_write, random_both: the mean |value| that independent random directions would show.
        angles: between the spans of their strongest features.
    """

    name: str
    first: str
    second: str
    read: Tensor
    write: Tensor
    both: Tensor
    random_read: float
    random_write: float
    random_both: float
    angles: PairAngles


def pair_detail(
    made: LayerFactors, task_names: Sequence[str], first: int, second: int, k: int | None = None
) -> PairDetail:
    """Compute the overlap of the features of two tasks.

    Args:
        made: the layer, factorised.
        task_names: of the whole workspace.
        first, second: positions among the layer's members.
        k: see pair_angles.

    Raises:
        InputError: there is no such member, or k is below 1.
    """
    angles = pair_angles(made, first, second, k)
    a, b = made.factors[first], made.factors[second]
    m, n = made.layer.shape
    read = (a.Vh @ b.Vh.T).clamp_(-1.0, 1.0)
    write = (a.U.T @ b.U).clamp_(-1.0, 1.0)
    return PairDetail(
        name=made.layer.name,
        first=task_names[made.layer.members[first]],
        second=task_names[made.layer.members[second]],
        both=read * write,
        read=read.abs_(),
        write=write.abs_(),
        random_read=random_overlap(n),
        random_write=random_overlap(m),
        # For independent directions, the mean of the product is the product of the means.
        random_both=random_overlap(n) * random_overlap(m),
        angles=angles,
    )


def pair_angles(made: LayerFactors, first: int, second: int, k: int | None = None) -> PairAngles:
    """Compute principal angles between the spans of the first k features of two members.

    Args:
        made: the layer, factorised.
        first, second: positions among its members.
        k: how many features, at most as many as both tasks have. None for as many as either needs for 90 % of its
            energy, whichever is fewer, at most MOST_ANGLES.

    Raises:
        InputError: there is no such member, or k is below 1.
    """
    count = len(made.factors)
    if not (0 <= first < count and 0 <= second < count):
        raise InputError(
            f"{made.layer.name}: tasks number {first} and {second} of this layer were asked for, but it has {count}, "
            "counted from 0. Choose two of them."
        )
    if k is not None and k < 1:
        raise InputError(f"{made.layer.name}: angles need at least 1 feature per task, but k = {k} was given.")
    a, b = made.factors[first], made.factors[second]
    if k is None:
        k = min(MOST_ANGLES, *(rank_for_energy(f.S, ANGLE_ENERGY) for f in (a, b)))
    k = min(k, a.rank, b.rank)
    m, n = made.layer.shape
    read, write = principal_angles(a.Vh[:k].T, b.Vh[:k].T), principal_angles(a.U[:, :k], b.U[:, :k])
    angles = (read, write, random_principal_angles(n, k), random_principal_angles(m, k))
    return PairAngles(k, *(torch.rad2deg(values) for values in angles))
