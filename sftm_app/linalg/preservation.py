"""What a matrix D keeps of each task's features, from the readouts that solving for it left: few products are needed.

With q = diag(U^T D V) of a task with gains s, V (n, r), and `lost` the sum of squares of those of its gains that are
not among s because the rank cut them off,

    readout error^2 = (||q - s||^2 + lost) / (||s||^2 + lost)
    mapping error^2 = (||D V||^2 - 2 s.q + ||s||^2 + lost) / (||s||^2 + lost)

So a feature that was cut off counts as lost as a whole: what the other tasks happen to leave there is not looked at.
Where V is square, as of a full rank with m >= n, ||D V|| = ||D||.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import Change, image
from sftm_app.linalg.superposition import Readouts
from sftm_app.linalg.svd import Factors

# Below this mapping error too few digits would be left of the difference, and it is formed.
SMALL_ERROR = 0.03


@dataclass(frozen=True)
class Errors:
    """Readout and mapping error of each task, both >= 0."""

    readout: list[float]
    mapping: list[float]


def errors_from(
    readouts: Readouts,
    factor: float,
    change: Callable[[], Change],
    factors: Sequence[Factors],
    lost: Sequence[float],
) -> Errors:
    """Errors of factor * D. readouts: D's, one tensor per task. change: gives D (m, n), and is asked once at most.

    factors: each task's features as they were superposed; lost: see above. A task without features has errors of 0.
    """
    formed: list[Change] = []

    def written(f: Factors) -> Tensor:
        if not formed:
            formed.append(change())
        return image(formed[0], f.Vh.T)

    readout, mapping = [], []
    for q, f, rest in zip(readouts.of, factors, lost, strict=True):
        if f.rank == 0:
            readout.append(0.0)
            mapping.append(0.0)
            continue
        # In units of the largest gain, so that no square overflows.
        unit = 1 / float(f.S[0])
        s, q = f.S.double() * unit, q.double() * (factor * unit)
        missing, total = rest * unit**2, float(s @ s) + rest * unit**2
        readout.append(math.sqrt((float((q - s).square().sum()) + missing) / total))
        seen = None if f.rank == f.shape[1] else written(f)
        size = readouts.norm if seen is None else float(torch.linalg.vector_norm(seen * unit)) / unit
        square = (size * abs(factor) * unit) ** 2 - 2 * float(s @ q) + float(s @ s)
        if square < SMALL_ERROR**2 * total:
            seen = written(f) if seen is None else seen
            square = float((seen * (factor * unit)).addcmul_(f.U, f.S * unit, value=-1.0).double().square().sum())
        mapping.append(math.sqrt((square + missing) / total))
    return Errors(readout, mapping)


def errors_on(change: Change, factors: Sequence[Factors]) -> Errors:
    """Errors of D (m, n) on the features given, by one product with each task's read directions."""
    readout, mapping = [], []
    for f in factors:
        if f.rank == 0:
            readout.append(0.0)
            mapping.append(0.0)
            continue
        unit = 1 / float(f.S[0])
        seen, s = image(change * unit, f.Vh.T), f.S * unit
        readout.append(float(((seen * f.U).sum(0) - s).norm() / s.norm()))
        mapping.append(float(seen.addcmul_(f.U, s, value=-1.0).norm() / s.norm()))
    return Errors(readout, mapping)
