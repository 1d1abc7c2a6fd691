"""What a delta D keeps of each task. Needs no data.

With q = diag(U^T D V) of a task with gains s and read directions V (n, r), and `rest` the sum of squares of its gains
that are not among s because a rank cut them off,

    readout error^2 = (||q - s||^2 + rest) / (||s||^2 + rest)
    mapping error^2 = (||D V - U S||^2 + rest) / (||s||^2 + rest)

So a feature that was cut off counts as lost: whatever the other tasks leave of it is ignored.

A Preservation holds these errors for every multiple c D. The multiple of the task that D comes nearest to, as it is
read, is alpha = s.q / ||s||^2, and the remainder is orthogonal to the task, so that for any c

    ||c q - s||^2     = c^2 ||q - alpha s||^2     + (c alpha - 1)^2 ||s||^2
    ||c D V - U S||^2 = c^2 ||D V - alpha U S||^2 + (c alpha - 1)^2 ||s||^2

are sums of squares: no digits cancel, whatever c is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, image


@dataclass(frozen=True)
class Preservation:
    """What a delta keeps of one task, in units of the task's largest gain. All 0 for a task without features.

    Attributes:
        energy: ||s||^2.
        rest: the sum of squares of the gains that were cut off.
        alpha: how many times the delta contains the task.
        off: ||q - alpha s||^2.
        missed: ||D V - alpha U S||^2.
    """

    energy: float
    rest: float
    alpha: float
    off: float
    missed: float


NOTHING = Preservation(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Errors:
    """Readout and mapping error of each task, both >= 0."""

    readout: tuple[float, ...]
    mapping: tuple[float, ...]


def measure(delta: Delta, factors: Sequence[Factors], lost: Sequence[float] | None = None) -> list[Preservation]:
    """Measure what a delta keeps of every task, by one product with each task's read directions.

    Args:
        delta: (m, n), dense or low-rank, of any method.
        factors: each task's features.
        lost: per task the sum of squares of the gains that `factors` leaves out; None for none.

    Returns:
        One Preservation per task.
    """
    lost = lost or [0.0] * len(factors)
    return [
        of_image(image(delta, f.Vh.T), f, rest) if f.rank else NOTHING for f, rest in zip(factors, lost, strict=True)
    ]


def of_image(seen: Tensor, factors: Factors, rest: float = 0.0) -> Preservation:
    """The same for one task with at least one feature, from D V (m, r)."""
    # In units of the largest gain, so that no square overflows.
    unit = 1 / float(factors.S[0])
    seen, gains = seen * unit, factors.S * unit
    s, q = gains.double(), (seen * factors.U).sum(0).double()
    energy, alpha, off = off_task(s, q)
    missed = float(torch.linalg.vector_norm(seen.addcmul_(factors.U, gains, value=-alpha))) ** 2
    return Preservation(energy, rest * unit**2, alpha, off, missed)


def off_task(s: Tensor, q: Tensor) -> tuple[float, float, float]:
    """||s||^2, alpha and ||q - alpha s||^2 of gains s and readouts q, (r,) float64."""
    energy = float(s @ s)
    alpha = float(s @ q) / energy
    d = q - alpha * s
    return energy, alpha, float(d @ d)


def errors(kept: Iterable[Preservation], factor: float = 1.0) -> Errors:
    """The errors of factor * D. A task without features has errors of 0."""
    readout: list[float] = []
    mapping: list[float] = []
    for one in kept:
        shift = (factor * one.alpha - 1) ** 2 * one.energy
        total = one.energy + one.rest
        for found, remainder in ((readout, one.off), (mapping, one.missed)):
            found.append(math.sqrt((factor**2 * remainder + shift + one.rest) / total) if total else 0.0)
    return Errors(tuple(readout), tuple(mapping))
