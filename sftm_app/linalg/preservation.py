"""What a matrix D keeps of each task's features, from the readouts that solving for it left: few products are needed.

With q = diag(U^T D V) of a task with gains s, V (n, r), and `rest` the sum of squares of those of its gains that are
not among s because the rank cut them off,

    readout error^2 = (||q - s||^2 + rest) / (||s||^2 + rest)
    mapping error^2 = (||D V - U S||^2 + rest) / (||s||^2 + rest)

So a feature that was cut off counts as lost as a whole: what the other tasks happen to leave there is not looked at.
The multiple of the task that D is nearest to, as it is read, is alpha = s.q / ||s||^2, and what is beside it is
orthogonal to the task. Of c D both first terms are sums of squares, whatever c is:

    ||c q - s||^2   = c^2 ||q - alpha s||^2     + (c alpha - 1)^2 ||s||^2
    ||c D V - U S||^2 = c^2 ||D V - alpha U S||^2 + (c alpha - 1)^2 ||s||^2,
    ||D V - alpha U S||^2 = ||D V||^2 - alpha^2 ||s||^2

Where V is square, as of a full rank with m >= n, ||D V|| = ||D||.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, image, images
from sftm_app.linalg.superposition import Readouts

# Where what is beside the task is a smaller share of D V than this, too few digits would be left of the difference, and
# it is formed.
SMALL_SHARE = 0.03


@dataclass(frozen=True)
class Preservation:
    """What D keeps of one task, but for alpha in squares of its largest gain; all 0 for a task without features.

    energy: ||s||^2. rest, alpha: see above. off: ||q - alpha s||^2. missed: ||D V - alpha U S||^2.
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

    readout: list[float]
    mapping: list[float]


@dataclass(frozen=True, eq=False)
class Formable:
    """A matrix D (m, n) by its readouts, one tensor per task; `form` gives D itself, and is asked once at most."""

    readouts: Readouts
    form: Callable[[], Delta]

    @cached_property
    def change(self) -> Delta:
        """D."""
        return self.form()


def errors(kept: Iterable[Preservation], factor: float = 1.0) -> Errors:
    """Errors of factor * D. A task without features has errors of 0."""
    readout: list[float] = []
    mapping: list[float] = []
    for one in kept:
        shift = (factor * one.alpha - 1) ** 2 * one.energy
        total = one.energy + one.rest
        for found, beside in ((readout, one.off), (mapping, one.missed)):
            found.append(math.sqrt((factor**2 * beside + shift + one.rest) / total) if total else 0.0)
    return Errors(readout, mapping)


def preserved(
    matrices: Sequence[Formable], factors: Sequence[Factors], lost: Sequence[float]
) -> list[list[Preservation]]:
    """What each of several matrices keeps of each task.

    factors: each task's features as they were superposed; lost: the sums of squares of the gains that are not there.
    """
    kept: list[list[Preservation]] = [[] for _ in matrices]
    for task, (f, rest) in enumerate(zip(factors, lost, strict=True)):
        whole = f.rank in (0, f.shape[1])
        seen = [None] * len(matrices) if whole else images([one.change for one in matrices], f.Vh.T)
        for one, found, written in zip(matrices, kept, seen, strict=True):
            found.append(_of_task(one, task, f, rest, written) if f.rank else NOTHING)
    return kept


def _of_task(matrix: Formable, task: int, f: Factors, rest: float, written: Tensor | None) -> Preservation:
    """written: D V, (m, r), or None where it is as long as D."""
    # In units of the largest gain, so that no square overflows.
    unit = 1 / float(f.S[0])
    s, q = f.S.double() * unit, matrix.readouts.of[task].double() * unit
    energy, alpha, off = _apart(s, q)
    size = matrix.readouts.norm * unit if written is None else float(torch.linalg.vector_norm(written * unit))
    missed = size**2 - alpha**2 * energy
    if missed < (SMALL_SHARE * size) ** 2:
        written = image(matrix.change, f.Vh.T) if written is None else written
        missed = float((written * unit).addcmul_(f.U, f.S * unit, value=-alpha).double().square().sum())
    return Preservation(energy, rest * unit**2, alpha, off, missed)


def _apart(s: Tensor, q: Tensor) -> tuple[float, float, float]:
    """||s||^2, alpha and ||q - alpha s||^2, of (r,) float64."""
    energy = float(s @ s)
    alpha = float(s @ q) / energy
    d = q - alpha * s
    return energy, alpha, float(d @ d)


def preserved_by(change: Delta, factors: Sequence[Factors]) -> list[Preservation]:
    """What D (m, n) keeps of the features given, by one product with each task's read directions."""
    kept = []
    for f in factors:
        if f.rank == 0:
            kept.append(NOTHING)
            continue
        unit = 1 / float(f.S[0])
        seen, gains = image(change * unit, f.Vh.T), f.S * unit
        energy, alpha, off = _apart(gains.double(), (seen * f.U).sum(0).double())
        missed = float(torch.linalg.vector_norm(seen.addcmul_(f.U, gains, value=-alpha))) ** 2
        kept.append(Preservation(energy, 0.0, alpha, off, missed))
    return kept
