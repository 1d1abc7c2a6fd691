"""The memory that a merge takes: what the plan says beforehand, from shapes, ranks and types alone.

Only one tensor is in memory at a time (one expert of a stack), as float32; what is counted is what lives at once at the
worst moment of merging it. With m x n the linear map, k = min(m, n), a matrix = 4 m n bytes, factors = 4 (m + n) r:

    reading     the base's tensor, one task's, and a task's bytes as stored where they are not float32
    sum         one change and the sum, whatever the number of tasks
    factorise   all tasks' factors, and for the last one its change, two copies and 4 k^2 of work space
    superpose   all factors, the system A of R x R (up to STORED_MAX features) and one product with D*
    measure     all factors, D*, the plain average, and one product of D* with a task's read directions

Not foreseen, because it depends on the values: a solve that the direct solver has to repeat, gains that are rounding
noise and dropped (less memory then), and what the system's allocator keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sftm_app.checkpoints.adapter_config import LoraPair
from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.checkpoints.roles import Part
from sftm_app.linalg.low_rank import ADD_ELEMENTS
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, STORED_MAX
from sftm_app.linalg.svd import Rank, n_kept

if TYPE_CHECKING:
    from sftm_app.merging.plan import PlanEntry
    from sftm_app.merging.recipe import Output

# What the first factorisation and the first products allocate once and keep.
FIRST_USE_BYTES = 8_000_000
# LAPACK's gesdd asks for 3 k^2 and, for a matrix much longer than wide, k^2 more (measured with torch 2.13).
WORK_SQUARES = 4
FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerSize:
    """One linear map (m, n): each task's features, how many of them are kept, and the bytes of the tensor read for it.

    features: per task min(m, n), or the rank of its LoRA pair. thin: per task whether it is one. tensor_bytes: the
    float32 tensor that it lies in. stored_bytes: what is read on top while it is upcast.
    """

    m: int
    n: int
    features: tuple[int, ...]
    thin: tuple[bool, ...]
    tensor_bytes: int
    stored_bytes: int

    @property
    def k(self) -> int:
        return min(self.m, self.n)

    @property
    def matrix_bytes(self) -> int:
        return FLOAT_BYTES * self.m * self.n

    def thin_bytes(self, rank: int) -> int:
        """Two thin matrices of this rank."""
        return FLOAT_BYTES * (self.m + self.n) * rank

    @property
    def factor_bytes(self) -> int:
        return sum(map(self.thin_bytes, self.features))


def sum_bytes(size: LayerSize) -> int:
    """Adding up changes, one after the other."""
    if all(size.thin):
        return 2 * size.factor_bytes
    return 2 * size.tensor_bytes + size.stored_bytes


def superposition_bytes(size: LayerSize, rank: Rank, variant: str) -> int:
    """Factorising, superposing and measuring one layer. A share of energy counts as the most that it can keep."""
    kept = [min(features, n_kept(rank, size.m, size.n)) for features in size.features]
    n_features = sum(kept)
    return max(
        _factorise(size),
        size.factor_bytes + _solve(size, kept, variant),
        size.factor_bytes + _measure(size, n_features),
    )


def _factorise(size: LayerSize) -> int:
    """The tasks' factors pile up while each change in turn is read and factorised."""
    done, peak = 0, 0
    for features, thin in zip(size.features, size.thin, strict=True):
        factors = size.thin_bytes(features)
        if thin:
            # In float64: the two matrices, one QR after the other, products with the core's factors.
            work = 7 * factors
        else:
            work = size.tensor_bytes + 2 * size.matrix_bytes + factors + WORK_SQUARES * FLOAT_BYTES * size.k**2
        peak = max(peak, done + max(work, 0 if thin else size.tensor_bytes + size.stored_bytes))
        done += factors
    return peak


def _solve(size: LayerSize, kept: Sequence[int], variant: str) -> int:
    """The system, and the worst of: one block of it, one superposed matrix read by one task."""
    n_features, largest = sum(kept), max(kept, default=0)
    direct = n_features <= AUTO_DIRECT_MAX
    item = 8 if direct else FLOAT_BYTES
    converted = item * (size.m + size.n) * largest if direct else 0
    system = item * n_features**2 if n_features <= STORED_MAX else 0
    reader = 0
    if variant == "mapping":
        system += item * (size.n**2 if n_features >= size.n else 2 * size.n * n_features)
        reader = item * size.n * largest
    block = 3 * item * largest**2 + 2 * converted + reader
    superposed = item * (size.m * size.n if n_features >= size.k else (size.m + size.n) * n_features)
    product = superposed + item * size.m * largest + max(converted, item * size.m * largest) + reader
    return system + max(block, product)


def _measure(size: LayerSize, n_features: int) -> int:
    """D* and the average, and a scaled copy of D* with its product with one task's read directions."""
    r = max(size.features, default=0)
    if n_features >= size.k:
        delta = size.matrix_bytes
        product = size.matrix_bytes + 2 * FLOAT_BYTES * size.m * r
    else:
        item = 8 if n_features <= AUTO_DIRECT_MAX else FLOAT_BYTES
        converted = item * (size.n + size.m) * r if item == 8 else FLOAT_BYTES * size.m * r
        delta = item * (size.m + size.n) * n_features
        product = item * (size.m * n_features + n_features * r) + converted + FLOAT_BYTES * size.m * r
    average = 2 * size.factor_bytes if all(size.thin) else size.tensor_bytes
    adding = 12 * min(size.m * size.n, ADD_ELEMENTS) if n_features < size.k else 0
    return max(delta + average + max(product, sum_bytes(size) - average), delta + adding)


def peak_bytes(entries: Sequence[PlanEntry], found: Preflight, params: Any, output: Output) -> int:
    """The most that a run takes at once: its largest tensor, or the heads of one task, and what the libraries take.

    An adapter is kept in memory until it is written, and every change is factorised once more.
    """
    adapter = output.kind == "adapter"
    largest = max((entry_bytes(entry, found, params, adapter) for entry in entries), default=0)
    held = sum(entry.adapter_bytes(output.rank) for entry in entries) if adapter else 0
    heads = (
        sum(task.checkpoint.tensors[name].n_bytes for name in match.heads)
        for task, match in zip(found.tasks, found.matches, strict=True)
    )
    return FIRST_USE_BYTES + held + max(largest, *heads)


def entry_bytes(entry: PlanEntry, found: Preflight, params: Any, adapter: bool = False) -> int:
    """The most that one tensor of a plan takes at once, in bytes."""
    stored = [found.base.tensors[entry.name].dtype]
    out = entry.output.dtype
    if entry.rule == "copy":
        # An adapter holds nothing of what no task changes.
        return 0 if adapter else torch.Size(entry.output.shape).numel() * _copying(stored[0], out)
    stored += [
        task.checkpoint.tensors[source].dtype
        for task, source in zip(found.tasks, entry.sources, strict=True)
        if isinstance(source, str)
    ]
    stack = bool(entry.parts) and entry.parts[0].expert is not None
    count = torch.Size(entry.output.shape[1:] if stack else entry.output.shape).numel()
    upcasting = max(0 if dtype == torch.float32 else dtype.itemsize * count for dtype in stored)
    fitting = {torch.float32: 0}.get(out, out.itemsize * count) + (FLOAT_BYTES * count if out.itemsize == 1 else 0)
    sizes = [_layer_size(entry, part, FLOAT_BYTES * count, upcasting) for part in entry.parts or (None,)]
    if entry.rule == "superpose":
        merging = max(superposition_bytes(size, params.rank, params.variant) for size in sizes)
    else:
        merging = max(map(sum_bytes, sizes))
    if adapter and entry.parts and not all(sizes[0].thin):
        alone = (replace(size, features=(size.k,), thin=(False,)) for size in sizes)
        merging = max(merging, *map(_factorise, alone))
    return (entry.output.n_bytes if stack else 0) + FLOAT_BYTES * count + max(upcasting, fitting, merging)


def _copying(stored: torch.dtype, out: torch.dtype) -> int:
    """Bytes an element takes on its way from `stored` by the compute type to `out`; the same type is not copied."""
    if not stored.is_floating_point:
        return stored.itemsize
    compute = torch.float64 if stored == torch.float64 else torch.float32
    reading = compute.itemsize + (stored.itemsize if stored != compute else 0)
    fitting = compute.itemsize + (out.itemsize if out != compute else 0) + (FLOAT_BYTES if out.itemsize == 1 else 0)
    return max(reading, fitting)


def _layer_size(entry: PlanEntry, part: Part | None, tensor_bytes: int, stored_bytes: int) -> LayerSize:
    m, n = part.shape_in(entry.output.shape) if part else (torch.Size(entry.output.shape).numel(), 1)
    present = [source for source in entry.sources if source is not None]
    features = tuple(min(source.rank, m, n) if isinstance(source, LoraPair) else min(m, n) for source in present)
    thin = tuple(isinstance(source, LoraPair) for source in present)
    return LayerSize(m, n, features, thin, tensor_bytes, stored_bytes)
