"""The memory that the functions of linalg take, from shapes and ranks alone.

With m x n the linear map, k = min(m, n), a matrix = 4 m n bytes, factors = 4 (m + n) r:

    sum         one task matrix and the sum, whatever the number of tasks
    factorise   all tasks' factors, and for the last task its matrix, a copy, and the eigenvectors of its Gram matrix
                (where k < GRAM_MIN two copies and 4 k^2 of work space); for as many tasks as are factorised at once
    superpose   all factors, and the system A: half of R x R (up to STORED_MAX features), or all of it in float64 (up to
                AUTO_DIRECT_MAX)
    measure     all factors, the delta, the plain average, and what one task reads of either

A rank given as a count or a share of the full rank cuts the factors while they are computed where k >= GRAM_MIN.

Not predicted, because it depends on the values: a solve that the direct solver repeats, few features so weak that they
take float64 after all, gains that are dropped as rounding noise (less memory then), and what the allocator keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sftm_app.linalg.factors import Rank, energy_share, n_kept, settled
from sftm_app.linalg.gram_svd import GRAM_MIN, ROWS, SINGLE_RANK
from sftm_app.linalg.low_rank import ADD_ELEMENTS
from sftm_app.linalg.metric import Metric, side_dimension
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, STORED_MAX
from sftm_app.linalg.system import fits_one_gemm

# LAPACK's gesdd asks for 3 k^2 and, for a matrix much longer than wide, k^2 more (measured with torch 2.13).
WORK_SQUARES = 4
# The Gram matrix, its eigenvectors and LAPACK's syevd, which asks for 2 k^2: in float64.
GRAM_SQUARES = 8
FLOAT_BYTES = 4
# Factorising a low-rank matrix in float64: the two thin matrices, one QR after the other, products with the core's
# factors; and the SVD of the core.
THIN_COPIES, CORE_SQUARES = 7, 16
# Factorising a dense matrix in float64, in float32 matrices: the matrix, a scaled copy, what LAPACK overwrites, and the
# factors on the long side, which are as large; and in squares LAPACK's work space and the factors on the short side.
DOUBLE_COPIES, DOUBLE_SQUARES = 8, 10
# Vectors of R numbers that the iterative solver holds.
SOLVER_VECTORS = 14


@dataclass(frozen=True)
class LayerSize:
    """One linear map (m, n) and how its task matrices are read.

    Attributes:
        m, n: its shape.
        features: per task min(m, n), or the rank of its LoRA pair.
        thin: per task whether it is a LoRA pair.
        tensor_bytes: the float32 tensor that holds the map.
        stored_bytes: what is read on top while a stored tensor is converted.
        n_at_once: how many tasks are read and factorised at once.
    """

    m: int
    n: int
    features: tuple[int, ...]
    thin: tuple[bool, ...]
    tensor_bytes: int
    stored_bytes: int
    n_at_once: int = 1

    @property
    def k(self) -> int:
        """The shorter side."""
        return min(self.m, self.n)

    @property
    def matrix_bytes(self) -> int:
        """One float32 matrix of this shape."""
        return FLOAT_BYTES * self.m * self.n

    @property
    def factor_bytes(self) -> int:
        """All features of all tasks."""
        return sum(map(self.thin_bytes, self.features))

    def thin_bytes(self, rank: int) -> int:
        """Two thin matrices of this rank."""
        return FLOAT_BYTES * (self.m + self.n) * rank

    def kept(self, rank: Rank) -> tuple[int, ...]:
        """Features that a rank keeps at most, per task."""
        return tuple(min(features, n_kept(rank, self.m, self.n)) for features in self.features)

    def likely(self, rank: Rank) -> tuple[int, ...]:
        """Features that a rank is likely to keep, per task: a share of energy is known only afterwards."""
        one = settled(rank, sum(self.features), self.k)
        share = likely_share(energy_share(one)) if isinstance(one, str) else 1.0
        return tuple(min(kept, math.ceil(share * self.k)) for kept in self.kept(rank))

    def computed(self, rank: Rank) -> tuple[int, ...]:
        """Features that are computed for a rank, per task: only large dense matrices are cut while they are."""
        cut = self.k >= GRAM_MIN and not isinstance(rank, str)
        return tuple(
            kept if cut and not thin else full
            for kept, full, thin in zip(self.kept(rank), self.features, self.thin, strict=True)
        )


def likely_share(energy: float) -> float:
    """The share of the full rank, 0..1, that is likely to hold a share of the energy, 0..1.

    Fits the task matrices of full fine-tunes of MiniLM and DINOv2, from half of the energy to 99 %, within a factor of
    about 1.3: 3 % of the features hold half of the energy, 19 % hold 90 %, 50 % hold 99 %.
    """
    return min(1.0, 0.19 * (-math.log10(1 - energy)) ** 1.4)


@dataclass(frozen=True)
class DeltaSize:
    """A delta: its bytes, and whether it is low-rank. (A low-rank one in float64 may be the larger one.)"""

    n_bytes: int
    low_rank: bool


def sum_bytes(size: LayerSize) -> int:
    """Bytes of a weighted sum of the task matrices, added one after the other."""
    if all(size.thin):
        return 2 * size.factor_bytes
    return 2 * size.tensor_bytes + size.stored_bytes


def factorise_bytes(size: LayerSize, computed: Sequence[int]) -> int:
    """Bytes at the worst moment of factorising every task, `computed` features each."""
    works, peak, done = [], 0, 0
    for rank, thin in zip(computed, size.thin, strict=True):
        if thin:
            works.append(factorise_thin_bytes(size.m, size.n, rank))
            continue
        square = FLOAT_BYTES * size.k**2
        if size.k < GRAM_MIN:
            work = 2 * size.matrix_bytes + size.thin_bytes(size.k) + WORK_SQUARES * square
        else:
            # In float32 where few are kept.
            double = rank > SINGLE_RANK * size.k
            eigen = GRAM_SQUARES * square + 8 * min(ROWS, max(size.m, size.n)) * size.k
            eigen = eigen if double else GRAM_SQUARES // 2 * square
            # The directions and a float32 copy of those kept; the products with them, twice.
            features = (2 if double else 1) * square + FLOAT_BYTES * (size.k + 2 * max(size.m, size.n)) * rank
            work = size.matrix_bytes + max(eigen, features)
        works.append(size.tensor_bytes + max(work, size.stored_bytes))
    for index, rank in enumerate(computed):
        peak = max(peak, done + sum(works[index : index + size.n_at_once]))
        done += size.thin_bytes(rank)
    return peak


def factorise_thin_bytes(m: int, n: int, rank: int) -> int:
    """Bytes of factorising a low-rank (m, n) matrix, itself not included."""
    return FLOAT_BYTES * (THIN_COPIES * (m + n) * rank + CORE_SQUARES * rank**2)


def factorise_double_bytes(m: int, n: int) -> int:
    """Bytes of factorising a dense float32 (m, n) matrix in float64, itself not included."""
    return FLOAT_BYTES * (DOUBLE_COPIES * m * n + DOUBLE_SQUARES * min(m, n) ** 2)


def superpose_bytes(size: LayerSize, kept: Sequence[int], variant: str, metric: Metric | None = None) -> int:
    """Bytes of solving for the coefficients of `kept` features per task and forming D*, factors not included."""
    n_features, largest = sum(kept), max(kept, default=0)
    if metric:
        # The sides are made and the features whitened; then the same problem is solved in the whitened spaces.
        p = side_dimension(size.m, n_features) if metric.outputs is not None else size.m
        q = side_dimension(size.n, n_features)
        spaces = [(size.n, q)] + ([(size.m, p)] if metric.outputs is not None else [])
        held = sum(FLOAT_BYTES * (q**2 + q * n_features + (own * q if q < own else 0)) for own, q in spaces)
        making = max(FLOAT_BYTES * (q**2 + 2 * q * largest + (2 * own * q if q < own else 0)) for own, q in spaces)
        own_blocks = FLOAT_BYTES * sum(r**2 for r in kept)
        solving = superpose_bytes(replace(size, m=p, n=q), kept, variant) + own_blocks
        # D is restored from both sides.
        restoring = 2 * combination_size(size, kept).n_bytes
        return held + max(making, solving, restoring)
    direct = n_features <= AUTO_DIRECT_MAX
    if not direct and n_features <= STORED_MAX and variant == "readout":
        half = FLOAT_BYTES * (n_features**2 - sum(r**2 for r in kept)) // 2
        solving = half + max(FLOAT_BYTES * largest**2, SOLVER_VECTORS * FLOAT_BYTES * n_features)
        # A dense one is summed task by task, a low-rank one joined from its parts.
        formed = size.matrix_bytes + FLOAT_BYTES * size.m * largest
        joined = FLOAT_BYTES * n_features * (size.m + max(size.m, size.n))
        return max(solving, formed if n_features >= size.k else joined)
    item = 8 if direct else FLOAT_BYTES
    converted = item * (size.m + size.n) * largest if direct else 0
    system = item * n_features**2 if n_features <= STORED_MAX else 0
    reader = 0
    if variant == "mapping":
        system += item * (size.n**2 if n_features >= size.n else 2 * size.n * n_features)
        reader = item * size.n * largest
    if fits_one_gemm(size.m, size.n, n_features):
        readers = item * size.n * n_features if variant == "mapping" else 0
        block = item * (2 * n_features**2 + (size.m + size.n) * n_features) + readers
    else:
        block = 3 * item * largest**2 + 2 * converted + reader
    superposed = item * (size.m * size.n if n_features >= size.k else (size.m + size.n) * n_features)
    product = superposed + item * size.m * largest + max(converted, item * size.m * largest) + reader
    return system + max(block, product)


def combination_size(size: LayerSize, kept: Sequence[int]) -> DeltaSize:
    """The size of sum_tk a_tk u_tk v_tk^T over `kept` features per task: two thin matrices, or a dense one."""
    n_features = sum(kept)
    if n_features >= size.k:
        return DeltaSize(size.matrix_bytes, low_rank=False)
    item = 8 if n_features <= AUTO_DIRECT_MAX else FLOAT_BYTES
    return DeltaSize(item * (size.m + size.n) * n_features, low_rank=True)


def measure_bytes(size: LayerSize, computed: Sequence[int], delta: DeltaSize) -> int:
    """Bytes of measuring what a delta keeps of each task, and the plain average next to it, factors not included."""
    r = max(computed, default=0)
    average = size.matrix_bytes if sum(computed) >= size.k else FLOAT_BYTES * (size.m + size.n) * sum(computed)
    # In float64 where the thin factors are: their product with one task's read directions.
    thin_product = 8 * (size.n + size.m) * r if delta.low_rank else 0
    return delta.n_bytes + average + 2 * FLOAT_BYTES * size.m * r + thin_product


def adding_bytes(size: LayerSize, delta: DeltaSize) -> int:
    """Bytes of adding a delta to the base: a low-rank one is scaled into a copy and added a few rows at a time."""
    if not delta.low_rank:
        return delta.n_bytes
    return 2 * delta.n_bytes + 12 * min(size.m * size.n, ADD_ELEMENTS)
