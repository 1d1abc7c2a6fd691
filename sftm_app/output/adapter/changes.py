"""The merged change of each tensor as a whole, and its features cut to what an adapter is to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from sftm_app.engine.cache import open_store
from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import MergedDelta, run_deltas
from sftm_app.linalg.factors import Factors, n_kept
from sftm_app.linalg.low_rank import Delta, LowRank, dense, norm
from sftm_app.linalg.parallel import compute_single_threaded
from sftm_app.linalg.svd import factorise
from sftm_app.planning.plan import Plan, PlanEntry


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """What is added to one tensor: a linear map (m, n) where it is one, else a tensor of its own shape, on the CPU.

    change is None for a stack of experts, which no one map stands for; `stack` is the square of its norm then.
    """

    entry: PlanEntry
    change: Delta | None
    stack: float
    records: tuple[TensorRecord, ...]

    @cached_property
    def features(self) -> Factors:
        """Of a linear map, in float64: QR of thin factors, or an SVD."""
        assert self.change is not None
        if isinstance(self.change, LowRank):
            return factorise(LowRank(self.change.left.double(), self.change.right.double()))
        return factorise(self.change.double())

    @cached_property
    def square(self) -> float:
        """||change||^2, in any case."""
        if isinstance(self.change, LowRank):  # whose norm would take the same QR once more
            return float(self.features.S.square().sum())
        return self.stack if self.change is None else norm(self.change) ** 2


def tensor_deltas(plan: Plan) -> Iterator[TensorDelta]:
    """The merged changes, tensor by tensor, in the plan's order; nothing for tensors that are copied.

    Thin ones are factorised while the next is merged. Raises as run_deltas().
    """
    with ThreadPoolExecutor(1, initializer=compute_single_threaded, initargs=(torch.get_num_threads(),)) as pool:
        before: list[tuple[TensorDelta, Future[Factors]]] = []
        for found in _tensor_changes(plan):
            thin = isinstance(found.change, LowRank)
            begun = [(found, pool.submit(getattr, found, "features"))] if thin else []
            yield from map(_ready, before)
            before = begun
            if not thin:
                yield found
            del found  # and its factors, which are as much as two tasks'
        yield from map(_ready, before)


def _ready(begun: tuple[TensorDelta, Future[Factors]]) -> TensorDelta:
    found, factors = begun
    factors.result()
    return found


def _tensor_changes(plan: Plan) -> Iterator[TensorDelta]:
    for _, group in groupby(run_deltas(plan, open_store()), key=lambda merged: merged.entry.name):
        parts = list(group)
        entry = parts[0].entry
        stacked = any(part.part is not None and part.part.expert is not None for part in parts)
        change = None if stacked else _on_cpu(_joined(entry, parts))
        stack = math.fsum(norm(part.change) ** 2 for part in parts) if stacked else 0.0
        yield TensorDelta(entry, change, stack, tuple(part.record for part in parts))


def _joined(entry: PlanEntry, parts: Sequence[MergedDelta]) -> Delta:
    """The changes of fused maps, one below the other, as one change of the whole matrix."""
    first = parts[0]
    if first.part is None or first.part.rows is None:
        return first.change
    m, n = 0, first.change.shape[1]
    spans = []
    for part in parts:
        assert part.part is not None and part.part.rows is not None
        spans.append(part.part.rows)
        m = max(m, part.part.rows[1])
    changes = [part.change for part in parts]
    thin = [change for change in changes if isinstance(change, LowRank)]
    if len(thin) < len(changes):
        whole = torch.zeros(m, n, dtype=dense(changes[0]).dtype)
        for (start, stop), change in zip(spans, changes, strict=True):
            whole[start:stop] = dense(change)
        return whole
    lefts = []
    for (start, stop), change in zip(spans, thin, strict=True):
        left = change.left.new_zeros(m, change.rank)
        left[start:stop] = change.left
        lefts.append(left)
    return LowRank(torch.cat(lefts, dim=1), torch.cat([change.right for change in thin]))


def _on_cpu(change: Delta) -> Delta:
    if isinstance(change, LowRank):
        return LowRank(change.left.cpu(), change.right.cpu())
    return change.cpu()


def n_features(found: Factors, rank: int | float | None, energy: float | None) -> int:
    """How many features to keep: at most `rank` (see n_kept), and no more than hold the share `energy` of sum S^2."""
    kept = min(n_kept(rank, *found.shape), found.rank)
    if energy is None or kept == 0:
        return kept
    reached = shares(found.S) >= energy - 1e-12
    return min(kept, int(reached.nonzero()[0]) + 1)


def shares(S: Tensor) -> Tensor:
    """The share of sum S^2 that the first 1, 2, ... features hold, (r,)."""
    squares = S.double().square().cumsum(0)
    return squares / squares[-1]
