"""Tasks with negative weights: what such a task changed is taken away.

Its task matrix counts negated, with the size of its weight. So every method, means included, takes tasks away in the
same way, and no sum of weights can vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sftm_app.linalg.low_rank import Delta
from sftm_app.methods.base import Features


class SignedMatrices(Sequence[Delta]):
    """Task matrices, those of negative weights negated. Each is read when it is asked for, and never kept."""

    def __init__(self, matrices: Sequence[Delta], weights: Sequence[float]) -> None:
        self._matrices = matrices
        self._weights = weights

    def __len__(self) -> int:
        return len(self._matrices)

    def __getitem__(self, index: int) -> Delta:  # type: ignore[override]  # one at a time, no slices
        change = self._matrices[index]
        return change * -1.0 if self._weights[index] < 0 else change


def signed_features(features: Sequence[Features], weights: Sequence[float]) -> list[Features]:
    """The features of such task matrices: negated ones write in the opposite direction."""
    return [
        replace(one, factors=replace(one.factors, U=-one.factors.U)) if weight < 0 else one
        for one, weight in zip(features, weights, strict=True)
    ]
