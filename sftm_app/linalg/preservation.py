"""What a matrix D keeps of each task's features, from the readouts that solving for it left: few products are needed.

With q = diag(U^T D V) of a task with gains s, V (n, r), and `rest` the sum of squares of those of its gains that are
not among s because the rank cut them off,

    readout error^2 = (||q - s||^2 + rest) / (||s||^2 + rest)
    mapping error^2 = (||D V - U S||^2 + rest) / (||s||^2 + rest),    ||D V - U S||^2 = ||D V||^2 - 2 s.q + ||s||^2

So a feature that was cut off counts as lost as a whole: what the other tasks happen to leave there is not looked at.
Where V is square, as of a full rank with m >= n, ||D V|| = ||D||. Of c D both first terms x become

    c^2 x + 2 c (c - 1) s.(q - s) + (c - 1)^2 ||s||^2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import Change, image
from sftm_app.linalg.superposition import Readouts
from sftm_app.linalg.svd import Factors

# Below this mapping error too few digits would be left of the difference, and it is formed.
SMALL_ERROR = 0.03


@dataclass(frozen=True)
class Preservation:
    """What D keeps of one task, in squares of its largest gain; all 0 for a task without features.

    energy: ||s||^2. rest: see above. off: ||q - s||^2. missed: ||D V - U S||^2. along: s.(q - s).
    """

    energy: float
    rest: float
    off: float
    missed: float
    along: float


NOTHING = Preservation(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Errors:
    """Readout and mapping error of each task, both >= 0."""

    readout: list[float]
    mapping: list[float]


def errors(kept: Iterable[Preservation], factor: float = 1.0) -> Errors:
    """Errors of factor * D. A task without features has errors of 0."""
    readout: list[float] = []
    mapping: list[float] = []
    for one in kept:
        shift = 2 * factor * (factor - 1) * one.along + (factor - 1) ** 2 * one.energy
        total = one.energy + one.rest
        for found, first in ((readout, one.off), (mapping, one.missed)):
            found.append(math.sqrt((max(0.0, factor**2 * first + shift) + one.rest) / total) if total else 0.0)
    return Errors(readout, mapping)


def preserved(
    readouts: Readouts,
    factor: float,
    change: Callable[[], Change],
    factors: Sequence[Factors],
    lost: Sequence[float],
) -> list[Preservation]:
    """What factor * D keeps of each task. readouts: D's, one tensor per task. change: gives D (m, n), and is asked once
    at most.

    factors: each task's features as they were superposed; lost: the sums of squares of the gains that are not there.
    """
    formed: list[Change] = []

    def written(f: Factors) -> Tensor:
        if not formed:
            formed.append(change())
        return image(formed[0], f.Vh.T)

    kept = []
    for q, f, rest in zip(readouts.of, factors, lost, strict=True):
        if f.rank == 0:
            kept.append(NOTHING)
            continue
        # In units of the largest gain, so that no square overflows.
        unit = 1 / float(f.S[0])
        s, q = f.S.double() * unit, q.double() * (factor * unit)
        energy, rest = float(s @ s), rest * unit**2
        seen = None if f.rank == f.shape[1] else written(f)
        size = readouts.norm if seen is None else float(torch.linalg.vector_norm(seen * unit)) / unit
        missed = (size * abs(factor) * unit) ** 2 - 2 * float(s @ q) + energy
        if missed < SMALL_ERROR**2 * (energy + rest):
            seen = written(f) if seen is None else seen
            missed = float((seen * (factor * unit)).addcmul_(f.U, f.S * unit, value=-1.0).double().square().sum())
        d = q - s
        kept.append(Preservation(energy, rest, float(d @ d), missed, float(s @ d)))
    return kept


def preserved_by(change: Change, factors: Sequence[Factors]) -> list[Preservation]:
    """What D (m, n) keeps of the features given, by one product with each task's read directions."""
    kept = []
    for f in factors:
        if f.rank == 0:
            kept.append(NOTHING)
            continue
        unit = 1 / float(f.S[0])
        seen, gains = image(change * unit, f.Vh.T), f.S * unit
        s, d = gains.double(), ((seen * f.U).sum(0) - gains).double()
        missed = float(torch.linalg.vector_norm(seen.addcmul_(f.U, gains, value=-1.0))) ** 2
        kept.append(Preservation(float(s @ s), 0.0, float(d @ d), missed, float(s @ d)))
    return kept
