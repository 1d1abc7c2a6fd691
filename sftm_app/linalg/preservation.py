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
from functools import partial

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import Change, image, images
from sftm_app.linalg.superposition import Readouts
from sftm_app.linalg.svd import Factors

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
    """A matrix D (m, n) by its readouts, one tensor per task; `change` gives D itself, and is asked once at most."""

    readouts: Readouts
    change: Callable[[], Change]


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
    formed: dict[int, Change] = {}

    def change(index: int) -> Change:
        if index not in formed:
            formed[index] = matrices[index].change()
        return formed[index]

    def written(index: int, f: Factors) -> Tensor:
        return image(change(index), f.Vh.T)

    every = range(len(matrices))
    kept: list[list[Preservation]] = [[] for _ in every]
    for task, (f, rest) in enumerate(zip(factors, lost, strict=True)):
        if f.rank == 0:
            for index in every:
                kept[index].append(NOTHING)
            continue
        seen = None if f.rank == f.shape[1] else images([change(index) for index in every], f.Vh.T)
        for index in every:
            own = None if seen is None else seen[index]
            kept[index].append(_of_task(matrices[index].readouts, task, f, rest, own, partial(written, index, f)))
    return kept


def _of_task(
    readouts: Readouts, task: int, f: Factors, rest: float, seen: Tensor | None, form: Callable[[], Tensor]
) -> Preservation:
    """seen: D V, (m, r), where it is not as long as D; form: gives it."""
    # In units of the largest gain, so that no square overflows.
    unit = 1 / float(f.S[0])
    s, q = f.S.double() * unit, readouts.of[task].double() * unit
    energy = float(s @ s)
    alpha = float(s @ q) / energy
    size = readouts.norm * unit if seen is None else float(torch.linalg.vector_norm(seen * unit))
    missed = size**2 - alpha**2 * energy
    if missed < (SMALL_SHARE * size) ** 2:
        seen = form() if seen is None else seen
        missed = float((seen * unit).addcmul_(f.U, f.S * unit, value=-alpha).double().square().sum())
    d = q - alpha * s
    return Preservation(energy, rest * unit**2, alpha, float(d @ d), missed)


def preserved_by(change: Change, factors: Sequence[Factors]) -> list[Preservation]:
    """What D (m, n) keeps of the features given, by one product with each task's read directions."""
    kept = []
    for f in factors:
        if f.rank == 0:
            kept.append(NOTHING)
            continue
        unit = 1 / float(f.S[0])
        seen, gains = image(change * unit, f.Vh.T), f.S * unit
        s, q = gains.double(), (seen * f.U).sum(0).double()
        energy = float(s @ s)
        alpha = float(s @ q) / energy
        d = q - alpha * s
        missed = float(torch.linalg.vector_norm(seen.addcmul_(f.U, gains, value=-alpha))) ** 2
        kept.append(Preservation(energy, 0.0, alpha, float(d @ d), missed))
    return kept
