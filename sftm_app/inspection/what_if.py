"""What a merge would do to one layer, answered while a slider moves. Nothing is written.

With A stored, for up to STORED_MAX features (times: bench/what_if.py):

    known coefficients (plain average, task arithmetic, mapping at full rank where every V_t is square): no solve
    readout: a solve at each new rank, and for each weight that starts to move
    mapping: the same, after its system is formed if many features are cut off
    minimum_variance: a whitening and a solve by linalg.superpose at each new rank, loading and weights
    nearly singular systems, deltas that grow too large, more features: linalg.superpose, for each rank and weights
    methods outside the span of the features: the method itself, for each of its params and weights

A new scaling costs nothing. In a wide layer, where a task reads neither nearly all inputs nor few, each solve and each
sum also forms D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.inspection.answers import Answer, formed_merge, formed_sum, formed_superposition, leading
from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.layers import MapLayer
from sftm_app.inspection.stored import StoredAnswers, stored_bytes
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors, Rank, cut_all
from sftm_app.linalg.feature_gram import couplings
from sftm_app.linalg.low_rank import singular_values
from sftm_app.linalg.metric import Whitened, whiten
from sftm_app.linalg.preservation import Errors, errors
from sftm_app.linalg.superposition import STORED_MAX, superpose
from sftm_app.linalg.system import starts, superposed
from sftm_app.methods import get_method
from sftm_app.methods.base import Combination, refuse_task_count
from sftm_app.methods.params import common_of
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.keys import at_scaling_1, scaling_of

# Answers that are cached: per answer a delta at most.
ANSWERS_KEPT = 6


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a merge with these settings does to one layer. Tuples hold one entry per member of the layer, in its order.

    D is the delta, with scaling and weights included.

    Attributes:
        settings: of the merge.
        readout_errors, mapping_errors: of D on all features of a task, >= 0; see linalg.preservation.
        coefficients: c_t (r_t,), what each feature adds to its own readout, 0 for features that are cut off; None for a
            method that does not combine features, and for calibrated merges.
        readouts: u_tk^T D v_tk (r_t,), to compare with the gains.
        ranks: how many features are used.
        norm: ||D||_F.
        condition: of the linear system, an estimate; None if none was solved.
        conflicts: pairs of members that oppose each other.
        n_dropped: directions that the tasks do not determine.
        in_span: whether D = sum_tk c_tk u_tk v_tk^T with these coefficients.
    """

    settings: MergeSettings
    readout_errors: tuple[float, ...]
    mapping_errors: tuple[float, ...]
    coefficients: tuple[Tensor, ...] | None
    readouts: tuple[Tensor, ...]
    ranks: tuple[int, ...]
    norm: float
    condition: float | None
    conflicts: tuple[Conflict, ...]
    n_dropped: int
    in_span: bool


@dataclass(frozen=True)
class _Question:
    """A delta up to its scaling: D = factor * D_1.

    Attributes:
        factor: the scaling.
        key: what D_1 depends on.
        counts: features used, per member.
        find: computes the answer about D_1.
    """

    factor: float
    key: Hashable
    counts: tuple[int, ...]
    find: Callable[[], Answer]


class WhatIf:
    """One layer under any settings. Safe under threads.

    Args:
        made: the layer, factorised.
        stored: whether to store A, (R, R) float32, from the first question on; None where there are at most STORED_MAX
            features. For a single question it is quicker not to.
        n_threads: how many threads may compute at once.
    """

    def __init__(self, made: LayerFactors, stored: bool | None = None, n_threads: int = 1) -> None:
        self.made = made
        n_features = sum(f.rank for f in made.factors)
        self._is_stored = n_features > 0 and (n_features <= STORED_MAX if stored is None else stored)
        self._n_threads = n_threads
        self._answers: LRUCache[Hashable, Answer] = LRUCache(ANSWERS_KEPT)
        self._interference: tuple[float, tuple[float, ...]] | None = None
        self._stored_answers: StoredAnswers | None = None
        self._whitened: tuple[Hashable, Whitened] | None = None
        self._lock = RLock()

    @property
    def n_bytes(self) -> int:
        """Bytes that this may come to hold, the factors included."""
        m, n = self.made.layer.shape
        n_features = sum(f.rank for f in self.made.factors)
        answers = ANSWERS_KEPT * (4 * m * n + 2 * 8 * n_features)
        whitened = self.made.n_bytes + 4 * (m**2 + n**2)
        return self.made.n_bytes + answers + whitened + (stored_bytes(self.made.factors) if self._is_stored else 0)

    def predict(self, settings: MergeSettings) -> Prediction:
        """Predict what a merge with `settings` does to this layer.

        The errors agree with those of the merge itself to about 1e-3.

        Raises:
            InputError: there are fewer weights than tasks, or the method does not merge this many tasks.
            NumericalError: the superposition has no finite answer.
        """
        asked = self._question(settings)
        answer = self._answer(asked.key, asked.find)
        found = errors(answer.kept, asked.factor)
        coefficients = answer.coefficients
        return Prediction(
            settings=settings,
            readout_errors=found.readout,
            mapping_errors=found.mapping,
            coefficients=None if coefficients is None else tuple(part * asked.factor for part in coefficients),
            readouts=tuple(part * asked.factor for part in answer.readouts),
            ranks=asked.counts,
            norm=abs(asked.factor) * answer.norm,
            condition=answer.condition,
            conflicts=answer.conflicts,
            n_dropped=answer.n_dropped,
            in_span=answer.delta is None,
        )

    def average_errors(self, weights: Sequence[float]) -> Errors:
        """The errors of the plain average with these weights, one per task of the workspace."""
        own, idle = self._own(weights)
        asked = Combination(1.0, own, self._counts(None), share=1.0 / (sum(map(abs, own)) + idle))
        return errors(self._answer(asked, partial(self._combined, asked)).kept)

    def condition(self, rank: Rank) -> float:
        """Estimate the largest over the smallest eigenvalue of A at this rank."""
        counts = self._counts(rank)
        asked = Combination(1.0, (1.0,) * len(counts), counts, "readout")
        with self._lock:
            answer = self._stored.answer(asked) if self._is_stored else None
        if answer is None or answer.condition is None:
            return superpose(leading(self.made.factors, counts), n_threads=self._n_threads).condition
        return answer.condition

    def spectrum(self, prediction: Prediction) -> tuple[float, ...]:
        """Compute the singular values of D, descending, at most min(m, n) of them. Takes an SVD's time."""
        asked = self._question(prediction.settings)
        delta = self._answer(asked.key, asked.find).delta
        if delta is not None:
            return tuple((singular_values(delta) * abs(asked.factor)).tolist())
        assert prediction.coefficients is not None, "an answer has coefficients or a delta"
        return tuple(singular_values(superposed(self.made.factors, prediction.coefficients)).tolist())

    def row(self, member: int, feature: int, settings: MergeSettings) -> Tensor:
        """What a unit of each feature's coefficient adds to the readout of one feature, (R,) float32.

        That is the feature's row of A; in a metric, with every column divided by its diagonal entry. A method that
        solves no system has the same row as `readout`. In a metric, features that are cut off have entries 0.

        Raises:
            InputError: there is no such feature.
        """
        offsets, factors = starts(self.made.factors), self.made.factors
        if not 0 <= feature < factors[member].rank:
            raise InputError(
                f"The task has {factors[member].rank} features in this layer, counted from 0, so none at {feature}."
            )
        asked = self._question(settings).key
        with self._lock:
            if isinstance(asked, Combination) and asked.metric:
                return self._row_in_metric(asked, member, feature)
            if self._stored_answers is not None:
                return self._stored_answers.gram.matrix[offsets[member] + feature].clone()
        return _row(factors, member, feature)

    def _row_in_metric(self, asked: Combination, member: int, feature: int) -> Tensor:
        key = (asked.metric, asked.counts)
        if self._whitened is None or self._whitened[0] != key:
            assert asked.metric is not None
            cut = leading(self.made.factors, asked.counts)
            self._whitened = key, whiten(self.made.factors, asked.metric, self._n_threads, cut)
        whitened = self._whitened[1]
        lengths = torch.cat(whitened.lengths)
        kept = torch.cat([torch.arange(f.rank) < n for f, n in zip(self.made.factors, asked.counts, strict=True)])
        row = _row(whitened.factors, member, feature) * whitened.lengths[member][feature]
        # Features that are cut off have no coefficient, and may have no length in the span of the others.
        return torch.where(kept, row / torch.where(kept, lengths, 1.0), 0.0)

    @property
    def interference(self) -> tuple[float, tuple[float, ...]]:
        """||A - I||_F / sqrt(R), and the same over each member's own rows; 0 where tasks share nothing."""
        with self._lock:
            if self._interference is None:
                squares = self._stored.gram.couplings if self._is_stored else couplings(self.made.factors)
                parts = torch.split(squares.double(), [f.rank for f in self.made.factors])
                self._interference = _root_mean(squares.double()), tuple(map(_root_mean, parts))
            return self._interference

    @property
    def _stored(self) -> StoredAnswers:
        if self._stored_answers is None:
            self._stored_answers = StoredAnswers(self.made.factors)
        return self._stored_answers

    def _question(self, settings: MergeSettings) -> _Question:
        method = get_method(settings.method)
        own, idle = self._own(settings.weights)
        refuse_task_count(method, len(settings.weights))
        # A calibrated delta is no combination of features that could be named.
        if method.predict is not None and common_of(settings.params).calibration == 0:
            asked = method.predict(self.made.factors, own, idle, settings.params)
            key = replace(asked, factor=1.0)
            return _Question(
                scaling_in(self.made.layer, settings, asked.factor), key, asked.counts, partial(self._combined, key)
            )
        params = at_scaling_1(settings.params)
        counts = self._counts(method.features(params) if method.features else None)
        find = partial(formed_merge, self.made, method, params, own, idle, self._n_threads)
        return _Question(scaling_in(self.made.layer, settings), (method.name, params, own, idle), counts, find)

    def _answer(self, key: Hashable, find: Callable[[], Answer]) -> Answer:
        with self._lock:
            if key not in self._answers:
                self._answers[key] = find()
            return self._answers[key]

    def _combined(self, asked: Combination) -> Answer:
        """The answer for a delta in the span of the features, from the stored A where that works."""
        answer = self._stored.answer(asked) if self._is_stored else None
        if answer is not None:
            return answer
        if asked.variant is None:
            return formed_sum(self.made.factors, asked)
        return formed_superposition(self.made.factors, asked, self._n_threads)

    def _counts(self, rank: Rank) -> tuple[int, ...]:
        return tuple(f.rank for f in cut_all(self.made.factors, rank))

    def _own(self, weights: Sequence[float]) -> tuple[tuple[float, ...], float]:
        """The weights of the layer's members, and the summed weights of the tasks that leave it as it is."""
        members, idle = self.made.layer.members, self.made.idle
        if max((*members, *idle), default=-1) >= len(weights):
            raise InputError(f"There are {len(weights)} task weights, but more tasks. Give one weight per task.")
        return tuple(weights[member] for member in members), float(sum(weights[task] for task in idle))


def scaling_in(layer: MapLayer, settings: MergeSettings, scaling: float | None = None) -> float:
    """The scaling of a merge in one layer: that of its params unless another is given, times the layer's factor."""
    factor = get_method(settings.method).place_factor(settings.params, layer.place.depth, layer.place.kind)
    return (scaling_of(settings.params) if scaling is None else scaling) * factor


def _row(factors: Sequence[Factors], member: int, feature: int) -> Tensor:
    u, v = factors[member].U[:, feature], factors[member].Vh[feature]
    return torch.cat([(u @ f.U).mul_(f.Vh @ v) for f in factors])


def _root_mean(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean())) if len(squares) else 0.0
