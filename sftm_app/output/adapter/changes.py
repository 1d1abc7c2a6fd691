"""The merged delta of each tensor as a whole, and its features cut to what an adapter is to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch

from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import MergedDelta, run_deltas
from sftm_app.linalg.factors import Factors, cumulative_energy, n_kept
from sftm_app.linalg.low_rank import Delta, LowRank, dense, norm
from sftm_app.linalg.parallel import compute_single_threaded
from sftm_app.linalg.svd import factorise
from sftm_app.planning.plan import Plan, PlanEntry
from sftm_app.session import Session


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """What is added to one tensor, on the CPU.

    Attributes:
        entry: the plan's entry.
        delta: a linear map (m, n) where the tensor is one, otherwise of the tensor's own shape; None for a stack of
            experts, which no single map stands for.
        stack: the squared norm of a stack's delta.
        records: its lines of the report.
    """

    entry: PlanEntry
    delta: Delta | None
    stack: float
    records: tuple[TensorRecord, ...]

    @cached_property
    def features(self) -> Factors:
        """Of a linear map, in float64: by QR of thin factors, or by an SVD."""
        assert self.delta is not None
        if isinstance(self.delta, LowRank):
            return factorise(LowRank(self.delta.left.double(), self.delta.right.double()))
        return factorise(self.delta.double())

    @cached_property
    def square(self) -> float:
        """||delta||^2, in any case."""
        if isinstance(self.delta, LowRank):  # its norm would take the same QR once more
            return float(self.features.S.square().sum())
        return self.stack if self.delta is None else norm(self.delta) ** 2


def tensor_deltas(plan: Plan, session: Session) -> Iterator[TensorDelta]:
    """The merged deltas, tensor by tensor, in the plan's order; nothing for tensors that are copied.

    Thin ones are factorised while the next one is merged. Raises what `run_deltas` raises.
    """
    with ThreadPoolExecutor(1, initializer=compute_single_threaded, initargs=(session.n_threads,)) as pool:
        before: list[tuple[TensorDelta, Future[Factors]]] = []
        for found in _tensor_deltas(plan, session):
            thin = isinstance(found.delta, LowRank)
            begun = [(found, pool.submit(getattr, found, "features"))] if thin else []
            yield from map(_ready, before)
            before = begun
            if not thin:
                yield found
            del found  # and its factors, which are as large as two tasks'
        yield from map(_ready, before)


def _ready(begun: tuple[TensorDelta, Future[Factors]]) -> TensorDelta:
    found, factors = begun
    factors.result()
    return found


def _tensor_deltas(plan: Plan, session: Session) -> Iterator[TensorDelta]:
    for _, group in groupby(run_deltas(plan, session), key=lambda merged: merged.entry.name):
        parts = list(group)
        entry = parts[0].entry
        delta = None if entry.in_experts else _on_cpu(_joined(parts))
        stack = math.fsum(norm(part.delta) ** 2 for part in parts) if entry.in_experts else 0.0
        yield TensorDelta(entry, delta, stack, tuple(part.record for part in parts))


def _joined(parts: Sequence[MergedDelta]) -> Delta:
    """The deltas of fused maps, one below the other, as one delta of the whole matrix."""
    first = parts[0]
    if first.part is None or first.part.rows is None:
        return first.delta
    m, n = 0, first.delta.shape[1]
    spans = []
    for part in parts:
        assert part.part is not None and part.part.rows is not None
        spans.append(part.part.rows)
        m = max(m, part.part.rows[1])
    deltas = [part.delta for part in parts]
    thin = [delta for delta in deltas if isinstance(delta, LowRank)]
    if len(thin) < len(deltas):
        whole = torch.zeros(m, n, dtype=dense(deltas[0]).dtype)
        for (start, stop), delta in zip(spans, deltas, strict=True):
            whole[start:stop] = dense(delta)
        return whole
    lefts = []
    for (start, stop), delta in zip(spans, thin, strict=True):
        left = delta.left.new_zeros(m, delta.rank)
        left[start:stop] = delta.left
        lefts.append(left)
    return LowRank(torch.cat(lefts, dim=1), torch.cat([delta.right for delta in thin]))


def _on_cpu(delta: Delta) -> Delta:
    if isinstance(delta, LowRank):
        return LowRank(delta.left.cpu(), delta.right.cpu())
    return delta.cpu()


def n_features(found: Factors, rank: int | float | None, energy: float | None) -> int:
    """How many features to keep: at most `rank` (see `n_kept`), and no more than hold a share of the energy."""
    kept = min(n_kept(rank, *found.shape), found.rank)
    if energy is None or kept == 0:
        return kept
    reached = cumulative_energy(found.S)[1:] >= energy - 1e-12
    return min(kept, int(reached.nonzero()[0]) + 1)
