"""What a merge would do to one layer, answered while a slider moves: nothing is merged for it.

With A kept, for up to STORED_MAX features (times: bench/what_if.py):

    average, task arithmetic, mapping at full rank where every V_t is square    coefficients known: no solve
    readout    a solve at each new rank and for each weight that starts to move; none for scaling
    mapping    the same, after forming its system where many features are cut off
    systems that are nearly singular or whose answer grows too much, layers with more features
               linalg.superpose, once for each rank and weights; none for scaling

Where a task neither reads nearly all inputs nor few (a wide layer), each solve and each sum forms D as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from threading import RLock

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.inspection.answers import Answer, formed_sum, formed_superposition, leading, length
from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.stored import StoredAnswers, stored_bytes
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Rank
from sftm_app.linalg.feature_gram import couplings
from sftm_app.linalg.low_rank import LowRank
from sftm_app.linalg.superposition import STORED_MAX, superpose
from sftm_app.linalg.system import starts, superposed
from sftm_app.methods.settings import MergeSettings

# Answers that were found by forming D are kept with D V_t of every task: as much as the factors.
FORMED_KEPT = 2


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a merge by these settings does to one layer. Lists hold one entry per member of the layer, in its order.

    D = sum_tk c_tk u_tk v_tk^T is the change added to the base, scaling and weights included. readout_errors and
    mapping_errors: of D on all of a task's own features, >= 0 (linalg.subspace). coefficients: c_t (r_t,), 0 for
    features that are cut off. readouts: u_tk^T D v_tk (r_t,), to be compared with the gains. ranks: features kept.
    norm: ||D||_F. condition: of the superposition's system, an estimate; None where none was solved. conflicts: over
    members. n_dropped: directions that the tasks do not determine (see linalg.superposition).
    """

    settings: MergeSettings
    readout_errors: tuple[float, ...]
    mapping_errors: tuple[float, ...]
    coefficients: tuple[Tensor, ...]
    readouts: tuple[Tensor, ...]
    ranks: tuple[int, ...]
    norm: float
    condition: float | None
    conflicts: tuple[Conflict, ...]
    n_dropped: int


@dataclass(frozen=True)
class _Asked:
    """Settings as a question about one layer: D = factor * D_1.

    variant: of the superposition to be solved; None where D_1 = share * sum_t w_t D_t is known. superposes: such a sum
    is what a superposition gives.
    """

    factor: float
    weights: tuple[float, ...]
    counts: tuple[int, ...]
    variant: str | None = None
    share: float = 1.0
    superposes: bool = False


class WhatIf:
    """One layer under any settings. Safe under threads.

    stored: keep A, (R, R) float32, from the first question on; the default where there are at most STORED_MAX features.
    For one question alone it is quicker not to.
    """

    def __init__(self, made: LayerFactors, stored: bool | None = None) -> None:
        self.made = made
        n_features = sum(f.rank for f in made.factors)
        self._is_stored = n_features > 0 and (n_features <= STORED_MAX if stored is None else stored)
        self._answers: StoredAnswers | None = None
        self._formed: LRUCache[object, Answer] = LRUCache(FORMED_KEPT)
        self._interference: tuple[float, tuple[float, ...]] | None = None
        self._lock = RLock()

    @property
    def n_bytes(self) -> int:
        """What this may come to hold, the factors included."""
        factors = self.made.n_bytes
        return factors + FORMED_KEPT * factors + (stored_bytes(self.made.factors) if self._is_stored else 0)

    def predict(self, settings: MergeSettings) -> Prediction:
        """What a merge by `settings` does to this layer.

        The errors agree with those of the merge itself to about 1e-3.

        Raises
            InputError: there are fewer weights than tasks.
            NumericalError: the superposition has no finite answer.
        """
        asked = self._ask(settings)
        with self._lock:
            answer = self._from_stored(asked) if self._is_stored else None
            answer = answer or self._from_formed(asked)
            mapping_errors = answer.mapping_errors(asked.factor)
        readouts = tuple(part * asked.factor for part in answer.readouts)
        errors = (_relative(read, f.S) for read, f in zip(readouts, self.made.factors, strict=True))
        coefficients = tuple(part * asked.factor for part in answer.coefficients)
        return Prediction(
            settings, tuple(errors), mapping_errors, coefficients, readouts, asked.counts,
            abs(asked.factor) * answer.norm, answer.condition, answer.conflicts, answer.n_dropped,
        )  # fmt: skip

    def condition(self, rank: Rank) -> float:
        """Largest over smallest eigenvalue of A at this rank, an estimate as in linalg.superposition."""
        counts = self._counts(rank)
        ones = (1.0,) * len(counts)
        with self._lock:
            answer = self._stored.superposition("readout", counts, ones) if self._is_stored else None
        if answer is None or answer.condition is None:
            return superpose(leading(self.made.factors, counts)).condition
        return answer.condition

    def spectrum(self, prediction: Prediction) -> tuple[float, ...]:
        """The singular values of D, descending, at most min(m, n) of them. Forms D, and takes an SVD's time."""
        change = superposed(self.made.factors, prediction.coefficients)
        if isinstance(change, LowRank):
            cores = [torch.linalg.qr(factor.double(), mode="r").R for factor in (change.left, change.right.T)]
            change = cores[0] @ cores[1].T
        return tuple(torch.linalg.svdvals(change).tolist())

    def row(self, member: int, feature: int) -> Tensor:
        """The row of A of one feature, (R,) float32: how much a unit of each feature adds to its readout."""
        offsets = starts(self.made.factors)
        own = self.made.factors[member]
        if not 0 <= feature < own.rank:
            raise InputError(f"This layer has {own.rank} features of that task, so there is none at {feature}.")
        with self._lock:
            if self._answers is not None:
                return self._answers.interactions.matrix[offsets[member] + feature].clone()
        u, v = own.U[:, feature], own.Vh[feature]
        return torch.cat([(u @ f.U).mul_(f.Vh @ v) for f in self.made.factors])

    @property
    def interference(self) -> tuple[float, tuple[float, ...]]:
        """||A - I||_F / sqrt(R), and for each member the same over its own rows; 0 where tasks share nothing."""
        with self._lock:
            if self._interference is None:
                squares = self._stored.interactions.couplings if self._is_stored else couplings(self.made.factors)
                parts = torch.split(squares.double(), [f.rank for f in self.made.factors])
                self._interference = _root_mean(squares.double()), tuple(map(_root_mean, parts))
            return self._interference

    @property
    def _stored(self) -> StoredAnswers:
        if self._answers is None:
            self._answers = StoredAnswers(self.made.factors)
        return self._answers

    def _counts(self, rank: Rank) -> tuple[int, ...]:
        return tuple(f.cut(rank).rank for f in self.made.factors)

    def _ask(self, settings: MergeSettings) -> _Asked:
        members, weights, params = self.made.layer.members, settings.weights, settings.params
        if max((*members, *self.made.idle), default=-1) >= len(weights):
            raise InputError(f"There are {len(weights)} task weights, but more tasks. Give one weight per task.")
        own = tuple(weights[member] for member in members)
        full = self._counts(None)
        if settings.method == "sftm":
            counts = self._counts(params.rank)
            n = self.made.layer.shape[1]
            n_square = counts.count(n)
            if params.variant == "mapping" and n_square and n_square + counts.count(0) == len(counts):
                # sum_t || D V_t - w_t U_t S_t ||^2 is then sum_t || D - w_t D_t ||^2, least at the average.
                return _Asked(params.scaling, own, counts, share=1.0 / n_square, superposes=True)
            return _Asked(params.scaling, own, counts, params.variant)
        if settings.method == "average":
            total = sum(own) + sum(weights[task] for task in self.made.idle)
            return _Asked(1.0, own, full, share=1.0 / total)
        if settings.method == "task_arithmetic":
            return _Asked(params.scaling, own, full)
        raise InputError(f"What the method {settings.method!r} does to a layer cannot be predicted. Choose another.")

    def _from_stored(self, asked: _Asked) -> Answer | None:
        if asked.variant is None:
            return self._stored.sum(asked.weights, asked.share, asked.superposes)
        return self._stored.superposition(asked.variant, asked.counts, asked.weights)

    def _from_formed(self, asked: _Asked) -> Answer:
        key = replace(asked, factor=1.0)
        if key not in self._formed:
            factors = self.made.factors
            if asked.variant is None:
                self._formed[key] = formed_sum(factors, asked.weights, asked.share, asked.superposes)
            else:
                self._formed[key] = formed_superposition(factors, asked.variant, asked.counts, asked.weights)
        return self._formed[key]


def _relative(read: Tensor, gains: Tensor) -> float:
    """|| read - gains || / || gains ||; 0 without gains."""
    return length((read - gains) / gains[0]) / length(gains / gains[0]) if len(gains) else 0.0


def _root_mean(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean())) if len(squares) else 0.0
