"""A delta D seen through the inputs that each task reads, without forming D where possible.

The mapping error of a task needs ||D V_t||. If V_t is square, that is ||D||. If it nearly is, ||D V_t||^2 is ||D||^2
minus what D does outside the span of V_t, and the few directions X there suffice: D X = sum_j U_j (a_j o V_j^T X).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.inspection.answers import leading
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.feature_gram import FeatureGram, Operator
from sftm_app.linalg.system import System, starts, superposed


@dataclass(frozen=True, eq=False)
class Columns:
    """The directions for one task: columns [start, stop) of X.

    Attributes:
        start, stop: the columns.
        outside: whether they are the directions that the task does not read, orthonormal; otherwise they are its own
            read directions.
    """

    outside: bool
    start: int
    stop: int


class InputProjection:
    """The read directions of each task or their orthogonal complement, whichever are fewer, side by side: X (n, k).

    Attributes:
        of: the columns of each task.
        n_columns: k.
        is_few: whether X is narrow, so that its columns are read feature by feature; otherwise it is less to form D.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        n = factors[0].shape[1]
        self._factors = factors
        parts, self.of = [], list[Columns]()
        for f in factors:
            outside = n - f.rank < f.rank
            parts.append(_complement(f.Vh) if outside else f.Vh.T)
            start = self.of[-1].stop if self.of else 0
            self.of.append(Columns(outside, start, start + parts[-1].shape[1]))
        self.n_columns = self.of[-1].stop
        self._X = torch.cat(parts, dim=1)
        self.is_few = 2 * self.n_columns <= n
        self._seen = [f.Vh @ self._X for f in factors] if self.is_few else []

    def image(self, a: Tensor, counts: Sequence[int]) -> Tensor:
        """D(a) X, (m, k) float32, for a (R,) float32 that is zero beyond each task's leading `counts`."""
        offsets = starts(self._factors)
        parts = [a[start : start + count] for start, count in zip(offsets, counts, strict=False)]
        if not self.is_few:
            return superposed(leading(self._factors, counts), parts) @ self._X
        total = a.new_zeros(self._factors[0].shape[0], self.n_columns)
        if self.n_columns:
            for f, seen, part in zip(self._factors, self._seen, parts, strict=True):
                total.addmm_(f.U[:, : len(part)], part[:, None] * seen[: len(part)])
        return total

    def read(self, image: Tensor) -> Tensor:
        """diag(U^T Y X^T V), (R,), for an image Y (m, k); only if X is narrow."""
        return torch.cat([(f.U.T @ image).mul_(seen).sum(1) for f, seen in zip(self._factors, self._seen, strict=True)])

    def squares(self, signs: Tensor) -> Tensor:
        """diag(V^T X diag(signs) X^T V), (R,); only if X is narrow."""
        return torch.cat([seen.square() @ signs for seen in self._seen])


def mapping_operator(
    factors: Sequence[Factors], gram: FeatureGram, projection: InputProjection, counts: tuple[int, ...]
) -> Operator:
    """The system of the `mapping` variant, a -> diag(U^T D(a) C V), C = sum_t V_t V_t^T over the features kept.

    At full rank C is a multiple of the identity except for the few directions of the projection, and A does the rest.
    Otherwise the system is formed, which takes R^2 (m + n) products for R features kept.
    """
    kept = gram.kept(counts)
    if counts == tuple(f.rank for f in factors) and projection.is_few:
        n_outside = sum(columns.outside for columns in projection.of)
        signs = torch.cat(
            [torch.full((columns.stop - columns.start,), -1.0 if columns.outside else 1.0) for columns in projection.of]
        )

        def by_projection(a: Tensor) -> Tensor:
            seen = projection.image(a, counts) * signs
            return n_outside * gram.product(a, counts) + projection.read(seen)

        return Operator(by_projection, n_outside + projection.squares(signs))
    matrix = System(leading(factors, counts), "mapping", torch.float32, stored=True).gram
    assert matrix is not None

    def by_matrix(a: Tensor) -> Tensor:
        product = torch.zeros_like(a)
        product[kept] = matrix @ a[kept]
        return product

    diagonal = torch.ones(len(kept))
    diagonal[kept] = matrix.diagonal()
    return Operator(by_matrix, diagonal)


def _complement(Vh: Tensor) -> Tensor:
    """Orthonormal columns (n, n - r) that are orthogonal to the rows of Vh (r, n), r <= n."""
    r, n = Vh.shape
    found = torch.randn(n, n - r, generator=torch.Generator().manual_seed(0)).to(Vh)
    for _ in range(2):  # once leaves rounding of the random columns' size, twice is enough
        found = torch.linalg.qr(found - Vh.T @ (Vh @ found)).Q
    return found
