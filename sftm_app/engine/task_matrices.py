"""Task matrices as they are read: a task's tensor minus the base's, or a LoRA pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from sftm_app.architecture.roles import Part
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.reader import TensorReader, open_reader


class TaskMatrices(Sequence[Delta]):
    """The task matrices of one layer. Each is read when it is asked for, and never kept.

    A list of them would take T times the layer; a method that goes from one to the next holds one at a time.
    """

    def __init__(self, read: Callable[[int], Delta], indices: Sequence[int]) -> None:
        self._read = read
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Delta:  # type: ignore[override]  # one at a time, no slices
        return self._read(self._indices[index])


@contextmanager
def open_readers(plan: Plan) -> Iterator[tuple[TensorReader, list[TensorReader]]]:
    """Open the readers of the base and of every task."""
    with ExitStack() as stack:
        base = stack.enter_context(open_reader(plan.preflight.base))
        yield base, [stack.enter_context(open_reader(task.checkpoint)) for task in plan.preflight.tasks]


def task_matrices_of(
    entry: PlanEntry,
    part: Part | None,
    indices: Sequence[int],
    tasks: Sequence[TensorReader],
    origin: Tensor | None,
    device: torch.device,
    span: tuple[int, int] | None = None,
) -> TaskMatrices:
    """The task matrices of one part of a tensor, or of the whole tensor.

    Args:
        entry: the tensor.
        part: a linear map in it, or None for the tensor in its own shape.
        indices: the tasks, by their place in the plan.
        tasks: a reader for every task.
        origin: the base's tensor, or the expert of a stack that the part lies in; None where all tasks are adapters.
        device: where they are needed.
        span: only these elements of the tensor, read flat.
    """
    inside, expert = (part.in_slice, part.expert) if part and span is None else (None, None)

    def read(index: int) -> Delta:
        source = entry.sources[index]
        assert source is not None
        return part_of(read_task_matrix(tasks[index], source, origin, device, expert, span), inside)

    return TaskMatrices(read, indices)


def read_task_matrix(
    read: TensorReader,
    source: str | LoraPair,
    origin: Tensor | None,
    device: torch.device,
    expert: int | None = None,
    span: tuple[int, int] | None = None,
) -> Delta:
    """Read a task's tensor and subtract the base's.

    Both are converted first: in float16, 60000 - (-60000) would be infinite.

    Args:
        read: the task's reader.
        source: the tensor's name in the task's files, or its LoRA pair, which needs no origin.
        origin: the base's tensor in the compute dtype.
        device: where the result is needed.
        expert, span: only this entry of a stack, or these elements; `origin` is then the same part of the base.
    """
    if isinstance(source, LoraPair):
        thin = read_pair(read, source, expert)
        return LowRank(thin.left.to(device), thin.right.to(device))
    assert origin is not None
    return read.finite(source, origin.dtype, expert, span).to(device).sub_(origin)


def read_pair(read: TensorReader, pair: LoraPair, expert: int | None = None) -> LowRank:
    """Read scaling * B @ A as a low-rank linear map (m, n) in the compute dtype, on the CPU.

    Args:
        read: the adapter's reader.
        pair: where its factors are.
        expert: which linear map, where the pair is of a whole stack.
    """
    made = [_read_one(read, one, expert) for one in pair.each]
    if len(made) == 1:
        return made[0]
    return LowRank(torch.cat([one.left for one in made], 1), torch.cat([one.right for one in made]))


def _read_one(read: TensorReader, pair: LoraPair, expert: int | None) -> LowRank:
    A, B = read.finite(pair.a, COMPUTE_DTYPE), read.finite(pair.b, COMPUTE_DTYPE)
    if pair.flipped:
        A, B = A.T, B.T
    if pair.n_experts:
        # PEFT keeps the experts one after the other in A, and interleaved in B.
        index = pair.expert if pair.expert is not None else expert or 0
        A = A.reshape(pair.n_experts, pair.rank, -1)[index]
        B = B.reshape(len(B), pair.rank, pair.n_experts)[:, :, index]
    if pair.rows is not None:
        B = B[slice(*pair.rows)]
    left = (B.reshape(len(B), -1) * pair.scaling).contiguous()
    if pair.within is not None:
        start, stop, rows = pair.within
        left = torch.cat([left.new_zeros(start, left.shape[1]), left, left.new_zeros(rows - stop, left.shape[1])])
    return LowRank(left, A.reshape(len(A), -1).contiguous())


def part_of(change: Delta, part: Part | None) -> Delta:
    """The task matrix of one part, (m, n), from that of the whole tensor."""
    if part is None or isinstance(change, LowRank):
        # A LoRA pair is a linear map already; it changes all of a tensor, never one expert of a stack.
        return change.rows(*part.rows) if isinstance(change, LowRank) and part and part.rows else change
    return part.of(change)
