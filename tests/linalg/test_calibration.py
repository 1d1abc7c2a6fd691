"""Calibration of singular values: its facts, a direct formula, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from closeness import assert_close
from linalg_cases import distance, gaussian, orthogonal, with_gains
from torch import Tensor

from sftm_app.linalg.calibration import calibrate, calibrate_operations
from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.linalg.workspace import DeltaSize, LayerSize

shapes = pytest.mark.parametrize(("m", "n"), [(12, 12), (17, 9), (9, 17), (80, 70)])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-11}


def calibrated_directly(
    D: Tensor, matrices: Sequence[Tensor], weights: Sequence[float], strength: float, by_energy: bool = True
) -> Tensor:
    """The paper's formula, or ours by energy, direction by direction, in float64."""
    D = D.double()
    P, sigma, Qh = torch.linalg.svd(D, full_matrices=False)
    result = torch.zeros_like(D)
    for r in range(len(sigma)):
        ratios, shares = [], []
        for matrix, weight in zip(matrices, weights, strict=True):
            own = P[:, r] @ (weight * matrix.double())
            if float(own.norm()) > 1e-9 * float(matrix.double().norm()):
                ratios.append(max(1.0, float((P[:, r] @ D) @ own) / float(own @ own)))
                shares.append(float(own @ own) if by_energy else 1.0)
        mean = sum(a * b for a, b in zip(ratios, shares, strict=True)) / sum(shares) if ratios else 1.0
        result += sigma[r] / mean**strength * torch.outer(P[:, r], Qh[r])
    return result


def related(m: int, n: int, dtype: torch.dtype, n_tasks: int = 4) -> list[Tensor]:
    """Tasks that share a part, as fine-tunes of one model do."""
    shared = with_gains(torch.logspace(0, -1, min(m, n), dtype=torch.float64), m, n, 99)
    return [(shared + 0.1 * gaussian(m, n, seed)).to(dtype) for seed in range(n_tasks)]


@shapes
@both_dtypes
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("by_energy", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (2.0, 0.5, 1.0, 3.0)])
def test_it_is_the_formula(
    m: int, n: int, dtype: torch.dtype, strength: float, weights: tuple[float, ...], by_energy: bool
) -> None:
    matrices = related(m, n, dtype)
    D = torch.stack([w * M for w, M in zip(weights, matrices, strict=True)]).sum(0)
    before = D.clone()
    found = calibrate(D, matrices, weights, strength, by_energy)
    wanted = calibrated_directly(D, matrices, weights, strength, by_energy)
    assert isinstance(found, Tensor) and found.dtype == dtype and torch.equal(D, before)
    assert distance(found, wanted) < CLOSE[dtype]
    assert distance(D, wanted) > 0.1, "there is something to calibrate"


def as_low_rank(matrix: Tensor, rank: int) -> LowRank:
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return LowRank(U[:, :rank] * s[:rank], Vh[:rank])


@pytest.mark.parametrize("kinds", ["all low-rank", "dense delta", "dense tasks", "mixed tasks"])
def test_low_rank_and_dense_ones_give_the_same(kinds: str) -> None:
    thin = [as_low_rank(M, 5) for M in related(40, 30, torch.float64)]
    joined = LowRank(torch.cat([t.left for t in thin], 1), torch.cat([t.right for t in thin]))
    matrices: list[Delta] = [
        dense(t) if kinds == "dense tasks" or (kinds == "mixed tasks" and k % 2) else t for k, t in enumerate(thin)
    ]
    delta: Delta = dense(joined) if kinds in ("dense delta", "mixed tasks") else joined
    found = calibrate(delta, matrices, [1.0] * 4, 1.0)
    assert type(found) is type(delta)
    if isinstance(found, LowRank):
        assert found.rank <= joined.rank
    wanted = calibrated_directly(dense(joined), [dense(t) for t in thin], [1.0] * 4, 1.0)
    assert distance(dense(found), wanted) < 1e-9


@both_dtypes
@shapes
def test_facts(m: int, n: int, dtype: torch.dtype) -> None:
    matrices, ones, close = related(m, n, dtype), [1.0] * 4, CLOSE[dtype]
    D = torch.stack(matrices).sum(0)
    found = dense(calibrate(D, matrices, ones, 1.0))
    assert calibrate(D, matrices, ones, 0.0) is D, "strength 0"
    assert distance(dense(calibrate(matrices[0], matrices[:1], ones[:1], 1.0)), matrices[0]) < close, "one task"
    assert distance(dense(calibrate(3 * matrices[0], [matrices[0]] * 3, ones[:3], 1.0)), matrices[0]) < close, "copies"
    half = dense(calibrate(4 * matrices[0], [matrices[0]] * 4, ones, 0.5))
    assert distance(half, 2 * matrices[0]) < close, "half the strength is the square root"
    for order in ([3, 1, 0, 2], [1, 2, 3, 0]):
        assert distance(dense(calibrate(D, [matrices[k] for k in order], ones, 1.0)), found) < close
    P, Q = orthogonal(m, 5).to(dtype), orthogonal(n, 6).to(dtype)
    turned = dense(calibrate(P @ D @ Q, [P @ M @ Q for M in matrices], ones, 1.0))
    assert distance(turned, P @ found @ Q) < 3 * close
    for c in (1e-12, 7.0, 1e12):
        assert distance(dense(calibrate(c * D, [c * M for M in matrices], ones, 1.0)), c * found) < close
    # The merge of half the tasks' weights, for tasks that want half: half of it.
    assert distance(dense(calibrate(D / 2, matrices, [0.5] * 4, 1.0)), found / 2) < close


@both_dtypes
@pytest.mark.parametrize(("m", "n"), [(12, 12), (17, 12), (12, 17), (96, 90)])
@pytest.mark.parametrize("gains", ["different", "equal"])
def test_tasks_that_share_nothing_stay_as_they_are(m: int, n: int, dtype: torch.dtype, gains: str) -> None:
    """Along a direction of one task the others write nothing but rounding noise, which must not count."""
    U, V, r = orthogonal(m, 1), orthogonal(n, 2), 4
    S = (
        torch.ones(3, r)
        if gains == "equal"
        else torch.tensor([[4.0, 2.0, 1.0, 0.5]] * 3) * torch.tensor([[1.0], [3.0], [9.0]])
    )
    matrices = [((U[:, k * r : k * r + r] * S[k].double()) @ V[:, k * r : k * r + r].T).to(dtype) for k in range(3)]
    D = torch.stack(matrices).sum(0)
    assert distance(dense(calibrate(D, matrices, [1.0] * 3, 1.0)), D) < CLOSE[dtype]
    zero = torch.zeros(m, n, dtype=dtype)
    assert distance(dense(calibrate(D, [*matrices, zero], [1.0] * 4, 1.0)), D) < CLOSE[dtype]


def test_a_task_that_changes_nothing_does_not_count() -> None:
    matrices = related(20, 15, torch.float64)
    D = torch.stack(matrices).sum(0)
    found = dense(calibrate(D, matrices, [1.0] * 4, 1.0))
    assert_close(dense(calibrate(D, [*matrices, torch.zeros(20, 15).double()], [1.0] * 5, 1.0)), found, 1e-12)


def test_nothing_to_calibrate() -> None:
    zero = torch.zeros(6, 5)
    assert calibrate(zero, [zero, zero], [1.0, 1.0], 1.0) is zero
    thin = LowRank(torch.zeros(6, 2), torch.zeros(2, 5))
    assert calibrate(thin, [thin], [1.0], 1.0) is thin
    A = gaussian(6, 5, 1, torch.float32)
    opposed = calibrate(A - A, [A, -A], [1.0, 1.0], 1.0)
    assert not dense(opposed).any()
    assert torch.equal(dense(calibrate(A, [zero, zero], [1.0, 1.0], 1.0)), A), "no task responds"


class Counted(list[Tensor]):
    """Task matrices that count how often each is read."""

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        super().__init__(matrices)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        self.read.append(index)
        return super().__getitem__(index)


def test_each_task_matrix_is_read_once() -> None:
    matrices = Counted(related(12, 9, torch.float32))
    calibrate(torch.stack(list(matrices)).sum(0), matrices, [1.0] * 4, 1.0)
    assert matrices.read == [0, 1, 2, 3]


def test_operations_are_those_of_the_products() -> None:
    full = LayerSize(30, 20, (20, 20), (False, False), 2400, 0)
    assert calibrate_operations(full, DeltaSize(2400, low_rank=False), 20) == 3 * 2 * 30 * 20 * 20
    thin = LayerSize(30, 20, (2, 3), (True, True), 2400, 0)
    assert calibrate_operations(thin, DeltaSize(4 * 50 * 5, low_rank=True), 5) == 2 * 5 * 50 * 5


@pytest.mark.parametrize("size", [1.0, 0.1, 1e-2, 1e-4, 1e-6, 0.0])
def test_a_task_that_hardly_changed_the_layer_decides_little(size: float) -> None:
    """As its change vanishes, the other task is kept as if it were alone; the paper's mean would halve it."""
    A, B = gaussian(40, 24, 1, torch.float32), size * gaussian(40, 24, 2, torch.float32)
    found = calibrate(A + B, [A, B], [1.0, 1.0], 1.0)
    assert distance(found, A + B) < 0.03 + 0.5 * size
    if 0 < size < 0.05:
        assert distance(calibrate(A + B, [A, B], [1.0, 1.0], 1.0, by_energy=False), A + B) > 0.2


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e30])
def test_squares_need_not_fit(size: float) -> None:
    matrices = related(17, 9, torch.float32)
    D = torch.stack(matrices).sum(0)
    found = calibrate(D * size, [M * size for M in matrices], [1.0] * 4, 1.0)
    assert distance(found.double() / size, calibrate(D, matrices, [1.0] * 4, 1.0)) < 1e-4
