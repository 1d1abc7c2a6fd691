"""The merged delta of each tensor as a whole, and its singular features."""

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
from sftm_app.linalg.factors import Factors
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
            experts, which is not a single linear map.
        stack_energy: the squared norm of a stack's delta.
        records: its lines of the report.
    """

    entry: PlanEntry
    delta: Delta | None
    stack_energy: float
    records: tuple[TensorRecord, ...]

    @cached_property
    def features(self) -> Factors:
        """The features of a linear map in float64, from the QR of thin factors or from an SVD."""
        assert self.delta is not None
        if isinstance(self.delta, LowRank):
            return factorise(LowRank(self.delta.left.double(), self.delta.right.double()))
        return factorise(self.delta.double())

    @cached_property
    def energy(self) -> float:
        """The squared norm of the delta."""
        if isinstance(self.delta, LowRank):  # computing its norm would repeat the QR
            return float(self.features.S.square().sum())
        return self.stack_energy if self.delta is None else norm(self.delta) ** 2


def tensor_deltas(plan: Plan, session: Session) -> Iterator[TensorDelta]:
    """The merged deltas, tensor by tensor, in the plan's order. Tensors that are copied have none.

    A low-rank delta is factorised while the next one is merged. Raises what `run_deltas` raises.
    """
    with ThreadPoolExecutor(1, initializer=compute_single_threaded, initargs=(session.n_threads,)) as pool:
        pending: list[tuple[TensorDelta, Future[Factors]]] = []  # at most one
        for delta in _join_parts(plan, session):
            low_rank = isinstance(delta.delta, LowRank)
            started = [(delta, pool.submit(getattr, delta, "features"))] if low_rank else []
            yield from map(_finish, pending)
            pending = started
            if not low_rank:
                yield delta
            del delta  # its factors are as large as those of two tasks
        yield from map(_finish, pending)


def _finish(started: tuple[TensorDelta, Future[Factors]]) -> TensorDelta:
    delta, features = started
    features.result()
    return delta


def _join_parts(plan: Plan, session: Session) -> Iterator[TensorDelta]:
    for _, group in groupby(run_deltas(plan, session), key=lambda merged: merged.entry.name):
        parts = list(group)
        entry = parts[0].entry
        delta = None if entry.in_experts else _on_cpu(_stack_rows(parts))
        energy = math.fsum(norm(part.delta) ** 2 for part in parts) if entry.in_experts else 0.0
        yield TensorDelta(entry, delta, energy, tuple(part.record for part in parts))


def _stack_rows(parts: Sequence[MergedDelta]) -> Delta:
    """The delta of a matrix whose fused maps, each a range of its rows, were merged one by one."""
    deltas = [part.delta for part in parts]
    rows = [part.part.rows for part in parts if part.part and part.part.rows]
    if not rows:
        return deltas[0]
    m, n = max(stop for _, stop in rows), deltas[0].shape[1]
    low_rank = [delta for delta in deltas if isinstance(delta, LowRank)]
    if len(low_rank) < len(deltas):
        whole = torch.zeros(m, n, dtype=dense(deltas[0]).dtype)
        for (start, stop), delta in zip(rows, deltas, strict=True):
            whole[start:stop] = dense(delta)
        return whole
    lefts = []
    for (start, stop), thin in zip(rows, low_rank, strict=True):
        left = thin.left.new_zeros(m, thin.rank)
        left[start:stop] = thin.left
        lefts.append(left)
    return LowRank(torch.cat(lefts, dim=1), torch.cat([thin.right for thin in low_rank]))


def _on_cpu(delta: Delta) -> Delta:
    if isinstance(delta, LowRank):
        return LowRank(delta.left.cpu(), delta.right.cpu())
    return delta.cpu()
