"""Two tasks in one layer: their features against each other, and the angles between the spaces of their strongest."""

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
    """Principal angles between the spans of two tasks' first k features, degrees in 0..90, ascending: float64 (k,).

    0 is a direction that both spaces hold, 90 one that is foreign to the other. random_read, random_write: the angles
    that random spaces of k dimensions would show.
    """

    k: int
    read: Tensor
    write: Tensor
    random_read: Tensor
    random_write: Tensor


@dataclass(frozen=True, eq=False)
class PairDetail:
    """The features of two tasks, strongest first.

    read, write: float32 (r_first, r_second), |cosine| of read and of write directions, 0..1. both: their entries of A,
    the same shape, signed, -1..1: what a unit of one feature adds to the readout of the other. random_read,
    random_write, random_both: the mean of |values| that independent random directions of these sizes would show.
    The angles are those of PairAngles.
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
    k: int
    read_angles: Tensor
    write_angles: Tensor
    random_read_angles: Tensor
    random_write_angles: Tensor


def pair_detail(
    made: LayerFactors, task_names: Sequence[str], first: int, second: int, k: int | None = None
) -> PairDetail:
    """Overlap of the features of two tasks, by their positions among the layer's members; k as in pair_angles.

    Raises
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
        # Of two independent directions: the mean of the product is the product of the means.
        random_both=random_overlap(n) * random_overlap(m),
        k=angles.k,
        read_angles=angles.read,
        write_angles=angles.write,
        random_read_angles=angles.random_read,
        random_write_angles=angles.random_write,
    )


def pair_angles(made: LayerFactors, first: int, second: int, k: int | None = None) -> PairAngles:
    """Principal angles between the spans of the first k features of two members, in read and in write space.

    k None: as many as the one of the two that needs fewer takes for 90 % of its energy, at most 64. No more than both
    tasks have: 0 where one of them changes nothing.

    Raises
        InputError: there is no such member, or k is below 1.
    """
    count = len(made.factors)
    if not (0 <= first < count and 0 <= second < count):
        raise InputError(
            f"{made.layer.name}: the tasks number {first} and {second} of this layer were asked for, but it has "
            f"{count}, counted from 0. Choose two of them."
        )
    if k is not None and k < 1:
        raise InputError(f"{made.layer.name}: angles need at least 1 feature a task, but k = {k} was given.")
    a, b = made.factors[first], made.factors[second]
    if k is None:
        k = min(MOST_ANGLES, *(rank_for_energy(f.S, ANGLE_ENERGY) for f in (a, b)))
    k = min(k, a.rank, b.rank)
    m, n = made.layer.shape
    read, write = principal_angles(a.Vh[:k].T, b.Vh[:k].T), principal_angles(a.U[:, :k], b.U[:, :k])
    angles = (read, write, random_principal_angles(n, k), random_principal_angles(m, k))
    return PairAngles(k, *(torch.rad2deg(values) for values in angles))
