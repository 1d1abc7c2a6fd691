"""The memory that a merge takes: what the plan says beforehand, from shapes, ranks and types alone.

Only one tensor is in memory at a time (one expert of a stack), as float32; what is counted is what lives at once at the
worst moment of merging it. With m x n the linear map, k = min(m, n), a matrix = 4 m n bytes, factors = 4 (m + n) r:

    reading     the base's tensor, one task's, and a task's bytes as stored where they are not float32
    sum         one change and the sum, whatever the number of tasks; where no change is a LoRA pair a few elements at a
                time, of a result in the type of the output
    factorise   all tasks' factors, and for the last one its change, a copy and the eigenvectors of its Gram matrix (of
                as many tasks as torch uses threads, of two on a GPU), or where k < GRAM_MIN two copies and 4 k^2 of
                work space
    superpose   all factors, and the system A: half of R x R (up to STORED_MAX features) or all of it in float64 (up to
                AUTO_DIRECT_MAX)
    measure     all factors, D*, and where a task reads a part of the inputs only, the plain sum and what D* makes of
                that part

A rank given as a count or a share of the full rank cuts the factors while they are computed where k >= GRAM_MIN.

Not foreseen, because it depends on the values: a solve that the direct solver has to repeat, few features so weak that
they take float64 after all, gains that are rounding noise and dropped (less memory then), and what the system's
allocator keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sftm_app.architecture.roles import Part
from sftm_app.linalg.factors import Rank, n_kept
from sftm_app.linalg.gram_svd import GRAM_MIN, ROWS, SINGLE_RANK
from sftm_app.linalg.low_rank import ADD_ELEMENTS
from sftm_app.linalg.superposition import AUTO_DIRECT_MAX, STORED_MAX, is_answered_by_tasks
from sftm_app.linalg.system import fits_one_gemm
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair

if TYPE_CHECKING:
    from sftm_app.planning.plan import PlanEntry
    from sftm_app.planning.recipe import Output

# What the first factorisation and the first products allocate once and keep.
FIRST_USE_BYTES = 8_000_000
# LAPACK's gesdd asks for 3 k^2 and, for a matrix much longer than wide, k^2 more (measured with torch 2.13).
WORK_SQUARES = 4
# The Gram matrix, its eigenvectors and LAPACK's syevd, which asks for 2 k^2: in float64.
GRAM_SQUARES = 8
FLOAT_BYTES = 4
# Right sides, and what the iteration keeps of each.
ROWS_HELD = 14
# Elements that are merged at once by a rule that takes each alone.
SPAN = 1 << 17
# One reads and converts a task's tensor while the GPU computes for the other.
GPU_THREADS = 2
CPU = torch.device("cpu")


def tasks_at_once(device: torch.device) -> int:
    """How many tasks' matrices of a layer are read and factorised side by side."""
    # On MPS superpositions go to the CPU.
    return GPU_THREADS if device.type == "cuda" else torch.get_num_threads()


def in_spans(entry: PlanEntry) -> bool:
    """Whether an entry is merged a few elements at a time, on the CPU, where they stay in the processor's caches.

    Reading them takes longer than adding them up, so a GPU has nothing to give.
    """
    return entry.rule in ("sum", "average") and not entry.pairs


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


def superposition_bytes(size: LayerSize, rank: Rank, variant: str, n_tasks: int) -> int:
    """Factorising (so many tasks at once), superposing and measuring one layer. A share of energy counts as the most
    that it can keep."""
    kept = [min(features, n_kept(rank, size.m, size.n)) for features in size.features]
    n_features = sum(kept)
    in_part = size.k >= GRAM_MIN and not isinstance(rank, str)
    held = [r if in_part and not thin else f for r, f, thin in zip(kept, size.features, size.thin, strict=True)]
    factors = sum(map(size.thin_bytes, held))
    measuring = _measure(size, kept) if held == kept else _measure_whole(size, n_features)
    return max(_factorise(size, held, n_tasks), factors + _solve(size, kept, variant), factors + measuring)


def _factorise(size: LayerSize, held: Sequence[int], n_tasks: int) -> int:
    """The tasks' factors pile up while the changes of some in turn are read and factorised."""
    works, peak, done = [], 0, 0
    for rank, thin in zip(held, size.thin, strict=True):
        if thin:
            # In float64: the two matrices, one QR after the other, products with the core's factors.
            works.append(7 * size.thin_bytes(rank))
            continue
        square = FLOAT_BYTES * size.k**2
        if size.k < GRAM_MIN:
            work = 2 * size.matrix_bytes + size.thin_bytes(size.k) + WORK_SQUARES * square
        else:
            # In float32 where few are kept.
            double = rank > SINGLE_RANK * size.k
            eigen = GRAM_SQUARES * square + 8 * min(ROWS, max(size.m, size.n)) * size.k
            eigen = eigen if double else GRAM_SQUARES // 2 * square
            features = 3 * square + (2 if size.m < size.n else 1) * size.thin_bytes(rank)
            work = size.matrix_bytes + max(eigen, features)
        works.append(size.tensor_bytes + max(work, size.stored_bytes))
    for index, rank in enumerate(held):
        peak = max(peak, done + sum(works[index : index + n_tasks]))
        done += size.thin_bytes(rank)
    return peak


def _solve(size: LayerSize, kept: Sequence[int], variant: str) -> int:
    """The system, and the worst of: one block of it, one superposed matrix read by one task."""
    n_features, largest = sum(kept), max(kept, default=0)
    direct = n_features <= AUTO_DIRECT_MAX
    if not direct and n_features <= STORED_MAX and variant == "readout":
        half = FLOAT_BYTES * (n_features**2 - sum(r**2 for r in kept)) // 2
        by_tasks = is_answered_by_tasks(size.m, size.n, n_features, len(kept))
        rows = ROWS_HELD * FLOAT_BYTES * n_features * (len(kept) + 1 if by_tasks else 1)
        return half + max(FLOAT_BYTES * largest**2, rows)
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


def _measure(size: LayerSize, kept: Sequence[int]) -> int:
    """D*, and what a task reads of it and of the plain sum where its read directions are not all there are."""
    n_features, r = sum(kept), max(kept, default=0)
    low = n_features < size.k
    item = 8 if low and n_features <= AUTO_DIRECT_MAX else FLOAT_BYTES
    written = FLOAT_BYTES * size.m * r
    delta = item * (size.m + size.n) * n_features if low else size.matrix_bytes
    plain = FLOAT_BYTES * (size.m + size.n) * n_features if low else size.matrix_bytes
    # A low-rank one is scaled into a copy before it is added.
    adding = delta + 12 * min(size.m * size.n, ADD_ELEMENTS) if low else 0
    if all(rank == size.n for rank in kept):
        return delta + max(written, adding)
    converted = item * (size.n + size.m) * r if item == 8 else 0
    return delta + max(adding, plain + 3 * written + converted)


def _measure_whole(size: LayerSize, n_features: int) -> int:
    """D* and the average, and a scaled copy of D* with its product with one task's read directions, all of them."""
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


def peak_bytes(
    entries: Sequence[PlanEntry], found: Preflight, params: Any, output: Output, device: torch.device = CPU
) -> int:
    """The most that a run takes at once, which merges every tensor afresh."""
    adapter = output.kind == "adapter"
    return run_bytes([entry_bytes(entry, found, params, adapter, device) for entry in entries], entries, found, output)


def run_bytes(each: Sequence[int], entries: Sequence[PlanEntry], found: Preflight, output: Output) -> int:
    """The most that a run takes at once, whose entries take `each`: its largest tensor, or the heads of one task, and
    what the libraries take. An adapter is kept in memory until it is written."""
    held = sum(entry.adapter_bytes(output.rank) for entry in entries) if output.kind == "adapter" else 0
    heads = (
        sum(task.checkpoint.tensors[name].n_bytes for name in match.heads)
        for task, match in zip(found.tasks, found.matches, strict=True)
    )
    return FIRST_USE_BYTES + held + max(max(each, default=0), *heads)


def kept_bytes(entry: PlanEntry, found: Preflight, rank: Rank) -> int:
    """The most that one superposed tensor takes at once of which an earlier merge kept all but the scaling: the base's
    tensor, D*, and what it takes to add that; or to convert the tensor."""
    stack, count = _held_at_once(entry)
    sizes = [_layer_size(entry, part, FLOAT_BYTES * count, 0) for part in entry.parts]
    upcasting = _upcasting([found.base.tensors[entry.name].dtype], count)
    change = max(_kept_change(size, rank) for size in sizes)
    return stack + FLOAT_BYTES * count + max(upcasting, _fitting(entry, count), change)


def _kept_change(size: LayerSize, rank: Rank) -> int:
    n_features = sum(min(features, n_kept(rank, size.m, size.n)) for features in size.features)
    if n_features >= size.k:
        return size.matrix_bytes
    item = 8 if n_features <= AUTO_DIRECT_MAX else FLOAT_BYTES
    # A low-rank one is scaled into a copy before it is added.
    return 2 * item * (size.m + size.n) * n_features + 12 * min(size.m * size.n, ADD_ELEMENTS)


def entry_bytes(
    entry: PlanEntry, found: Preflight, params: Any, adapter: bool = False, device: torch.device = CPU
) -> int:
    """The most that one tensor of a plan takes at once, in bytes. For an adapter every change is factorised again."""
    n_tasks = tasks_at_once(device)
    stored = [found.base.tensors[entry.name].dtype]
    if entry.rule == "copy":
        # An adapter holds nothing of what no task changes.
        return 0 if adapter else torch.Size(entry.output.shape).numel() * _copying(stored[0], entry.output.dtype)
    stored += [
        task.checkpoint.tensors[source].dtype
        for task, source in zip(found.tasks, entry.sources, strict=True)
        if isinstance(source, str)
    ]
    if in_spans(entry) and not adapter:
        stored_size = max(0 if dtype == torch.float32 else dtype.itemsize for dtype in stored)
        span = min(SPAN, torch.Size(entry.output.shape).numel())
        # Base, sum and one change; blocks of this size are the allocator's to keep, and it keeps about as many again.
        return entry.output.n_bytes + torch.get_num_threads() * span * (6 * FLOAT_BYTES + stored_size)
    stack, count = _held_at_once(entry)
    upcasting, fitting = _upcasting(stored, count), _fitting(entry, count)
    sizes = [_layer_size(entry, part, FLOAT_BYTES * count, upcasting) for part in entry.parts or (None,)]
    if entry.rule == "superpose":
        merging = max(superposition_bytes(size, params.rank, params.variant, n_tasks) for size in sizes)
    else:
        merging = max(map(sum_bytes, sizes))
    if adapter and entry.parts and not all(sizes[0].thin):
        alone = (replace(size, features=(size.k,), thin=(False,)) for size in sizes)
        merging = max(merging, *(_factorise(size, size.features, n_tasks) for size in alone))
    return stack + FLOAT_BYTES * count + max(upcasting, fitting, merging)


def _held_at_once(entry: PlanEntry) -> tuple[int, int]:
    """The bytes of a stack of experts that is filled one by one, and the elements of a tensor, or of one expert."""
    stack = bool(entry.parts) and entry.parts[0].expert is not None
    count = torch.Size(entry.output.shape[1:] if stack else entry.output.shape).numel()
    return entry.output.n_bytes if stack else 0, count


def _upcasting(stored: Sequence[torch.dtype], count: int) -> int:
    return max(0 if dtype == torch.float32 else dtype.itemsize * count for dtype in stored)


def _fitting(entry: PlanEntry, count: int) -> int:
    out = entry.output.dtype
    return (0 if out == torch.float32 else out.itemsize * count) + (FLOAT_BYTES * count if out.itemsize == 1 else 0)


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
