"""Tasks that ask for opposite things, so that no superposition can keep both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.system import read, superposed
from sftm_app.linalg.tolerance import CONFLICT_ERROR, conflict_cosine


@dataclass(frozen=True)
class Conflict:
    """Tasks `first` < `second` (indices) oppose each other; cosine = <D_i, D_j> / (||D_i|| ||D_j||), in [-1, 0)."""

    first: int
    second: int
    cosine: float


def find_conflicts(factors: Sequence[Factors], readouts: Tensor, gains: Tensor) -> tuple[Conflict, ...]:
    """Pairs with a clearly negative cosine of which at least one task's readout is lost; readouts, gains: (R,)."""
    ranks = [f.rank for f in factors]
    wanted = torch.split(gains, ranks)
    kept = torch.split(readouts, ranks)
    lost = [float((k - w).norm()) > CONFLICT_ERROR * float(w.norm()) for k, w in zip(kept, wanted, strict=True)]
    limit = conflict_cosine(*factors[0].shape)
    found = []
    for j in range(1, len(wanted)):
        if not (wanted[j].numel() and (lost[j] or any(lost[:j]))):
            continue
        D_j = superposed([factors[j]], [wanted[j]])
        for i in range(j):
            if not (wanted[i].numel() and (lost[i] or lost[j])):
                continue
            inner = float(wanted[i] @ read(D_j, factors[i]))
            cosine = inner / (float(wanted[i].norm()) * float(wanted[j].norm()))
            if cosine < limit:
                found.append(Conflict(i, j, max(-1.0, cosine)))
    return tuple(sorted(found, key=lambda c: (c.first, c.second)))
