"""Answers from the stored A: what a merge does to one layer, without forming the delta.

With a the coefficients of D, s the gains of task t (zero for the features of others), X the inputs that it does not
read, and alpha from linalg.preservation:

    readouts    u^T D v = A a
    ||D||^2     a^T A a
    missed      ||(D - alpha D_t) V_t||^2 = (a - alpha s)^T A (a - alpha s) - ||D X||^2

In a well-posed system everything is linear in the tasks' weights: T solves give every weight at one rank, and two
solves suffice while one weight moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.inspection.answers import Answer
from sftm_app.inspection.input_projection import InputProjection, mapping_operator
from sftm_app.linalg.conflicts import Conflict, find_conflicts, length
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.feature_gram import FeatureGram
from sftm_app.linalg.preconditioner import COUPLED_MAX
from sftm_app.linalg.preservation import NOTHING, Preservation, off_task
from sftm_app.linalg.tolerance import GROWTH_LIMIT, solve_tolerance
from sftm_app.methods.base import Combination

# How far readout and mapping errors may be from those of the exact solution, for weights of about 1.
ACCURACY = 4e-4
# With larger weights, what is missed of one task could be visible in another's errors.
MOST_WEIGHT = 5.0
# How many ranks' responses are cached: few where D X is large, since all weights of a rank take T of them.
FEWEST_RANKS, MOST_RANKS, RANKS_BYTES = 2, 64, 32_000_000


@dataclass(frozen=True, eq=False)
class Response:
    """The response to some weights, float32, with gains in units of StoredAnswers.scale.

    Attributes:
        a: (R,), coefficients.
        readouts: A a, (R,).
        image: D(a) X, (m, k); see InputProjection.
        condition: of the linear system; None if none was solved.
    """

    a: Tensor
    readouts: Tensor
    image: Tensor
    condition: float | None


class StoredAnswers:
    """Answers for one layer from its stored A. Not safe under threads.

    Attributes:
        gram: A.
        projection: the inputs that tasks read.
        scale: the unit of gains, a power of two.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.gram = FeatureGram(factors)
        self.projection = InputProjection(factors)
        self.scale = power_of_two(max((float(f.S[0]) for f in factors if f.rank), default=1.0))
        self._factors = factors
        self._full = tuple(f.rank for f in factors)
        self._gains = torch.cat([f.S for f in factors]) / self.scale
        alone = torch.eye(len(factors), dtype=torch.float64)
        # Row t: A times the gains of task t alone, which is u^T D_t v of every feature.
        self._reads = torch.stack([self._product(self._weighted(one, self._full)) for one in alone])
        self._linear: LRUCache[object, Linear] = LRUCache(n_ranks(factors, self.projection.n_columns))

    def answer(self, asked: Combination) -> Answer | None:
        """The answer at factor 1; None where linalg.superpose must solve: in a metric, or if A is ill-conditioned."""
        weights = torch.tensor(asked.weights, dtype=torch.float64)
        if asked.variant is None:
            response = self._responses("sum", self._respond_sum).at(weights * asked.share)
            assert response is not None
        else:
            if asked.metric or max(map(abs, asked.weights)) > MOST_WEIGHT:
                return None
            respond = partial(self._respond, asked.variant, asked.counts)
            found = self._responses((asked.variant, asked.counts), respond).at(weights)
            if found is None:
                return None
            response = found
            if (
                _inner(response.a, response.readouts)
                > (GROWTH_LIMIT * length(self._weighted(weights, asked.counts))) ** 2
            ):
                return None
        return Answer(
            readouts=self._split(response.readouts * self.scale),
            norm=max(0.0, _inner(response.a, response.readouts)) ** 0.5 * self.scale,
            kept=self._kept(response),
            coefficients=self._split(response.a * self.scale),
            condition=response.condition,
            conflicts=self._conflicts(response, weights, asked.counts) if asked.reports_conflicts else (),
        )

    def _responses(self, key: object, respond: Callable[[Tensor], Response | None]) -> Linear:
        if key not in self._linear:
            self._linear[key] = Linear(respond)
        return self._linear[key]

    def _respond_sum(self, weights: Tensor) -> Response:
        a = self._weighted(weights, self._full)
        return Response(a, weights.to(self._reads) @ self._reads, self.projection.image(a, self._full), None)

    def _respond(self, variant: str, counts: tuple[int, ...], weights: Tensor) -> Response | None:
        if self.gram.dependent(counts):
            return None
        wanted, operator = self._weighted(weights, counts), None
        if variant == "mapping":
            operator = mapping_operator(self._factors, self.gram, self.projection, counts)
            wanted = self.gram.product(wanted, counts) * self.gram.kept(counts)
        smallest = min(norm for part in self._split(self._gains) if (norm := length(part)))
        # No task may be missed by more than its share, but superpose itself goes no further than `finest`.
        finest = solve_tolerance(torch.float32) * length(wanted)
        tolerance = max(finest, ACCURACY * float(weights.abs().max()) * smallest)
        found = self.gram.solve(wanted, counts, tolerance, operator)
        if found is None:
            return None
        return Response(found.a, found.readouts, self.projection.image(found.a, counts), found.condition)

    def _conflicts(self, response: Response, weights: Tensor, counts: Sequence[int]) -> tuple[Conflict, ...]:
        wanted = self._split(self._weighted(weights, counts))
        readouts = self._split(response.readouts * self.gram.kept(counts))
        return find_conflicts(self._factors[0].shape, wanted, readouts, partial(self._between, counts, weights))

    def _kept(self, response: Response) -> tuple[Preservation, ...]:
        a, readouts, reads = response.a.double(), response.readouts.double(), self._reads.double()
        gains, read_back = self._split(self._gains), self._split(readouts)
        kept = []
        for t, (factors, columns) in enumerate(zip(self._factors, self.projection.of, strict=True)):
            if not factors.rank:
                kept.append(NOTHING)
                continue
            seen = response.image[:, columns.start : columns.stop]
            energy, alpha, off = off_task(gains[t].double(), read_back[t])
            if columns.outside:
                remainder = a.clone()
                self._split(remainder)[t].sub_(gains[t], alpha=alpha)
                missed = max(0.0, float(remainder @ (readouts - alpha * reads[t])) - length(seen) ** 2)
            else:
                # In float32: this is the largest matrix here, and float64 would take twelve times as long.
                missed = float(torch.linalg.vector_norm(torch.addcmul(seen, factors.U, gains[t], value=-alpha))) ** 2
            kept.append(Preservation(energy, 0.0, alpha, off, missed))
        return tuple(kept)

    def _between(self, counts: Sequence[int], weights: Tensor, i: int, j: int) -> float:
        """<D_i, D_j> of the weighted task matrices, cut."""
        first, second = self._split(self._gains)[i][: counts[i]], self._split(self._gains)[j][: counts[j]]
        if counts[j] == self._full[j]:
            read = self._split(self._reads[j])[i][: counts[i]]
        else:
            read = self.gram.block(i, j)[: counts[i], : counts[j]] @ second
        return _inner(first, read) * float(weights[i] * weights[j])

    def _weighted(self, weights: Tensor, counts: Sequence[int]) -> Tensor:
        """The weighted gains kept, (R,), zero for the features cut off."""
        each = weights.to(self._gains).repeat_interleave(torch.tensor(self._full))
        return self._gains * each * self.gram.kept(counts)

    def _product(self, a: Tensor) -> Tensor:
        return self.gram.product(a, self._full)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, list(self._full))


class Linear:
    """Responses to any weights, combined from those to a few directions. Once one fails, every answer is None."""

    def __init__(self, respond: Callable[[Tensor], Response | None]) -> None:
        self._respond = respond
        self._known: list[tuple[Tensor, Response]] = []
        self._failed = False

    def at(self, weights: Tensor) -> Response | None:
        """The response to `weights` (T,), float64, not all zero."""
        left, parts = weights.clone(), list[tuple[float, Response]]()
        for direction, response in self._known:
            parts.append((float(direction @ left), response))
            left -= parts[-1][0] * direction
        if float(left.norm()) > 1e-9 * float(weights.norm()) and not self._failed:
            direction = left / left.norm()
            new = self._respond(direction)
            if new is None:
                self._failed = True
            else:
                self._known.append((direction, new))
                parts.append((float(left.norm()), new))
        if self._failed:
            return None
        a, readouts, image = (
            combine([(c, getattr(part, name)) for c, part in parts]) for name in ("a", "readouts", "image")
        )
        return Response(a, readouts, image, parts[0][1].condition)


def combine(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """sum_i c_i x_i of tensors of one shape, at least one; those with c = 0 cost nothing."""
    (c, x), *rest = parts
    total = x * c
    for c, x in rest:
        if c:
            total.add_(x, alpha=c)
    return total


def stored_bytes(factors: Sequence[Factors]) -> int:
    """Bytes that StoredAnswers holds at most: A, the inverses for its solves, and the responses of some ranks."""
    n_features, n = sum(f.rank for f in factors), factors[0].shape[1]
    n_columns = sum(min(f.rank, n - f.rank) for f in factors)
    inverses = 4 * 4 * min(n_features, COUPLED_MAX) ** 2
    seen = 4 * n_columns * (n + n_features if 2 * n_columns <= n else n)
    responses = n_ranks(factors, n_columns) * rank_bytes(factors, n_columns)
    return 4 * n_features**2 + 4 * len(factors) * n_features + inverses + seen + responses


def n_ranks(factors: Sequence[Factors], n_columns: int) -> int:
    """How many ranks' responses are cached."""
    return max(FEWEST_RANKS, min(MOST_RANKS, RANKS_BYTES // max(1, rank_bytes(factors, n_columns))))


def rank_bytes(factors: Sequence[Factors], n_columns: int) -> int:
    """Bytes of one rank's responses, for all weights."""
    n_features = sum(f.rank for f in factors)
    return 4 * len(factors) * (2 * n_features + factors[0].shape[0] * n_columns)


def _inner(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())
