"""Answers from A, kept: what a merge of one layer does, found without forming the merged matrix.

With a the coefficients of D and s those of one task matrix D_t, zero for the features of others,

    readouts        u^T D v = A a
    ||D||^2         a^T A a
    mapping error   ||(D - D_t) V_t||^2 = (a - s)^T A (a - s) - ||D X||^2,   X the inputs that the task does not read

Where the system is well posed everything is linear in the tasks' weights: T solves say all at one rank, two while one
weight is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cachetools import LRUCache
from torch import Tensor

from sftm_app.inspection.answers import Answer, conflicts_of, length, mapping_error_of
from sftm_app.inspection.input_projection import InputProjection, mapping_operator
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.feature_gram import FeatureGram
from sftm_app.linalg.preconditioner import COUPLED_MAX
from sftm_app.linalg.tolerance import GROWTH_LIMIT, solve_tolerance

# How far readout and mapping errors may be from those of the exact solution, for weights of about 1.
ACCURACY = 4e-4
# Beyond, one task's share of what is missed could be seen in another's errors.
MOST_WEIGHT = 5.0
# The responses of so many ranks are kept: few where D X is large, since all weights of a rank take T of them.
FEWEST_RANKS, MOST_RANKS, RANKS_BYTES = 2, 64, 32_000_000


@dataclass(frozen=True, eq=False)
class Response:
    """To weights: a (R,), A a (R,), D(a) X (m, k), float32, gains in units of StoredAnswers.scale."""

    a: Tensor
    product: Tensor
    image: Tensor
    condition: float | None


class StoredAnswers:
    """Answers for one layer, as those of answers.py. Not safe under threads."""

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.interactions = FeatureGram(factors)
        self.sides = InputProjection(factors)
        self.scale = power_of_two(max((float(f.S[0]) for f in factors if f.rank), default=1.0))
        self._factors = factors
        self._full = tuple(f.rank for f in factors)
        self._gains = torch.cat([f.S for f in factors]) / self.scale
        self._norms = [length(part) for part in self._split(self._gains)]
        alone = torch.eye(len(factors), dtype=torch.float64)
        # Row t: A times the gains of task t alone, so u^T D_t v of every feature.
        self._reads = torch.stack([self._product(self._weighted(one, self._full)) for one in alone])
        self._linear: LRUCache[object, Linear] = LRUCache(n_ranks(factors, self.sides.n_columns))

    def sum(self, weights: Sequence[float], share: float = 1.0, superposes: bool = False) -> Answer:
        """D_1 = share * sum_t w_t D_t. superposes: a superposition gave this, which can tell conflicts."""
        given = torch.tensor(weights, dtype=torch.float64)
        response = self._responses("sum", self._respond_sum).at(given * share)
        assert response is not None
        return self._answer(response, given, self._full, superposes)

    def superposition(self, variant: str, counts: tuple[int, ...], weights: Sequence[float]) -> Answer | None:
        """D_1 = D* of a variant with the leading `counts` features of each task; None where that is for superpose."""
        if max(weights) > MOST_WEIGHT:
            return None
        given = torch.tensor(weights, dtype=torch.float64)
        response = self._responses((variant, counts), partial(self._respond, variant, counts)).at(given)
        if response is None:
            return None
        asked = length(self._weighted(given, counts))
        if _inner(response.a, response.product) > (GROWTH_LIMIT * asked) ** 2:
            return None
        return self._answer(response, given, counts, True)

    def _responses(self, key: object, respond: Callable[[Tensor], Response | None]) -> Linear:
        if key not in self._linear:
            self._linear[key] = Linear(respond)
        return self._linear[key]

    def _respond_sum(self, weights: Tensor) -> Response:
        a = self._weighted(weights, self._full)
        return Response(a, weights.to(self._reads) @ self._reads, self.sides.image(a, self._full), None)

    def _respond(self, variant: str, counts: tuple[int, ...], weights: Tensor) -> Response | None:
        if self.interactions.dependent(counts):
            return None
        wanted, operator = self._weighted(weights, counts), None
        if variant == "mapping":
            operator = mapping_operator(self._factors, self.interactions, self.sides, counts)
            wanted = self.interactions.product(wanted, counts) * self.interactions.kept(counts)
        smallest = min(norm for norm in self._norms if norm)
        # No task may be missed by more than its share, but superpose itself goes no further than this.
        finest = solve_tolerance(torch.float32) * length(wanted)
        tolerance = max(finest, ACCURACY * float(weights.abs().max()) * smallest)
        found = self.interactions.solve(wanted, counts, tolerance, operator)
        if found is None:
            return None
        return Response(found.a, found.product, self.sides.image(found.a, counts), found.condition)

    def _answer(self, response: Response, weights: Tensor, counts: Sequence[int], superposes: bool) -> Answer:
        coefficients = self._split(response.a * self.scale)
        readouts = self._split(response.product * self.scale)
        conflicts: tuple[Conflict, ...] = ()
        if superposes:
            wanted = self._split(self._weighted(weights, counts))
            kept = self._split(response.product * self.interactions.kept(counts))
            conflicts = conflicts_of(self._factors[0].shape, wanted, kept, partial(self._between, counts, weights))
        norm = max(0.0, _inner(response.a, response.product)) ** 0.5 * self.scale
        errors = partial(self._mapping_errors, response)
        return Answer(coefficients, readouts, norm, errors, response.condition, conflicts)

    def _mapping_errors(self, response: Response, c: float) -> tuple[float, ...]:
        found = []
        a, product, reads = c * response.a.double(), c * response.product.double(), self._reads.double()
        for t, (factors, side) in enumerate(zip(self._factors, self.sides.of, strict=True)):
            seen = response.image[:, side.start : side.stop]
            if not factors.rank:
                found.append(0.0)
            elif not side.outside:
                found.append(mapping_error_of(seen, factors, c, self.scale))
            else:
                own = slice(self.interactions.starts[t], self.interactions.starts[t + 1])
                apart, missed = a.clone(), product - reads[t]
                apart[own] -= self._gains[own]
                square = float(apart @ missed) - (c * length(seen)) ** 2
                found.append(max(0.0, square) ** 0.5 / self._norms[t])
        return tuple(found)

    def _between(self, counts: Sequence[int], weights: Tensor, i: int, j: int) -> float:
        """<D_i, D_j> of the weighted task matrices, cut."""
        first, second = self._split(self._gains)[i][: counts[i]], self._split(self._gains)[j][: counts[j]]
        if counts[j] == self._full[j]:
            read = self._split(self._reads[j])[i][: counts[i]]
        else:
            read = self.interactions.block(i, j)[: counts[i], : counts[j]] @ second
        return _inner(first, read) * float(weights[i] * weights[j])

    def _weighted(self, weights: Tensor, counts: Sequence[int]) -> Tensor:
        """The weighted gains kept, (R,), zero beyond."""
        each = weights.to(self._gains).repeat_interleave(torch.tensor(self._full))
        return self._gains * each * self.interactions.kept(counts)

    def _product(self, a: Tensor) -> Tensor:
        return self.interactions.product(a, self._full)

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, list(self._full))


class Linear:
    """Responses to any weights, by combining those to a few directions. None once and for all where one fails."""

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
        first = parts[0][1]
        a, product, image = (
            combine([(c, getattr(part, name)) for c, part in parts]) for name in ("a", "product", "image")
        )
        return Response(a, product, image, first.condition)


def combine(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """sum_i c_i x_i of tensors of one shape, at least one; those with c = 0 cost nothing."""
    (c, x), *rest = parts
    total = x * c
    for c, x in rest:
        if c:
            total.add_(x, alpha=c)
    return total


def stored_bytes(factors: Sequence[Factors]) -> int:
    """What StoredAnswers comes to hold at most: A, the inverses for its solves, and the responses of some ranks."""
    n_features, n = sum(f.rank for f in factors), factors[0].shape[1]
    n_columns = sum(min(f.rank, n - f.rank) for f in factors)
    coupled = 4 * 4 * min(n_features, COUPLED_MAX) ** 2
    seen = 4 * n_columns * (n + n_features if 2 * n_columns <= n else n)
    responses = n_ranks(factors, n_columns) * rank_bytes(factors, n_columns)
    return 4 * n_features**2 + 4 * len(factors) * n_features + coupled + seen + responses


def n_ranks(factors: Sequence[Factors], n_columns: int) -> int:
    """How many ranks' responses are kept."""
    return max(FEWEST_RANKS, min(MOST_RANKS, RANKS_BYTES // max(1, rank_bytes(factors, n_columns))))


def rank_bytes(factors: Sequence[Factors], n_columns: int) -> int:
    """What the responses of one rank take, for all weights."""
    n_features = sum(f.rank for f in factors)
    return 4 * len(factors) * (2 * n_features + factors[0].shape[0] * n_columns)


def _inner(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())
