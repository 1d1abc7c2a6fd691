"""Minimum variance: the facts of the design's section 2, and a dense oracle that shares no formula with the code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from hypothesis import assume, given
from linalg_cases import (
    LOOSE,
    SETTINGS,
    distance,
    features,
    gaussian,
    orthogonal,
    readout_error,
    superposed_matrix,
    task_matrices,
    total_norm,
)
from torch import Tensor

from sftm_app.errors import RecipeError
from sftm_app.linalg import Factors, LowRank, Outcome, factorise, superpose, superposed_delta
from sftm_app.linalg.metric import Metric, metric_operations, side_dimension, whiten
from sftm_app.linalg.tolerance import GROWTH_LIMIT

METRICS = (Metric(3.0, 3.0), Metric(0.3), Metric(0.5, 2.0))
both_solvers = pytest.mark.parametrize("solver", ["direct", "iterative"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
all_metrics = pytest.mark.parametrize("metric", METRICS)
# Square, tall, wide; and thin ones whose features span little of either side, or of one.
shapes = pytest.mark.parametrize(("m", "n", "r"), [(12, 12, 12), (17, 9, 9), (9, 17, 9), (40, 30, 3), (60, 8, 4)])


def moments(factors: Sequence[Factors], metric: Metric) -> tuple[Tensor, Tensor]:
    """M and N in float64, from the task matrices themselves."""
    matrices = [(f.U.double() * f.S.double()) @ f.Vh.double() for f in factors if f.rank]
    m, n = factors[0].shape
    shares = [D / D.norm() for D in matrices]
    M = sum(D.T @ D for D in shares) * (n / len(shares)) + metric.inputs * torch.eye(n, dtype=torch.float64)
    if metric.outputs is None:
        return M, torch.eye(m, dtype=torch.float64)
    return M, sum(D @ D.T for D in shares) * (m / len(shares)) + metric.outputs * torch.eye(m, dtype=torch.float64)


def root(M: Tensor, power: float) -> Tensor:
    values, Q = torch.linalg.eigh(M)
    return (Q * values**power) @ Q.T


def oracle(factors: Sequence[Factors], metric: Metric) -> tuple[Tensor, float, float]:
    """D* as the matrix Y = N^1/2 D M^1/2 of least norm with u^T N^-1/2 Y M^-1/2 v = s, by a pseudo-inverse.

    Also how far the design matrix of unit rows is from a change of rank, and ||Y|| over the norm of its gains.
    """
    U, V, gains = features(factors)
    M, N = moments(factors, metric)
    writes, reads = root(N, -0.5) @ U, root(M, -0.5) @ V
    rows = torch.stack([torch.outer(writes[:, k], reads[:, k]).flatten() for k in range(len(gains))])
    lengths = rows.norm(dim=1)
    design, target = rows / lengths[:, None], gains / lengths
    Y = (torch.linalg.pinv(design, rtol=1e-6) @ target).reshape(len(N), len(M))
    values = torch.linalg.svdvals(design)
    real = values[values > 1e-6 * values[0]]
    return root(N, -0.5) @ Y @ root(M, -0.5), float(real[-1] / real[0]), float(Y.norm() / target.norm())


def merged(matrices: Sequence[Tensor], metric: Metric, solver: str = "auto") -> Tensor:
    factors = [factorise(D) for D in matrices]
    return superposed_matrix(factors, superpose(factors, solver=solver, metric=metric))


@all_metrics
@both_solvers
@both_dtypes
@given(matrices=task_matrices())
@SETTINGS
def test_D_star_equals_the_dense_solve(metric: Metric, solver: str, dtype: torch.dtype, matrices: list[Tensor]) -> None:
    factors = [factorise(D.to(dtype)) for D in matrices]
    assume(any(f.rank for f in factors))
    expected, distance_to_singular, growth = oracle(factors, metric)
    assume(distance_to_singular > 0.03 and growth < 0.99 * GROWTH_LIMIT)
    D = superposed_matrix(factors, superpose(factors, solver=solver, metric=metric))
    assert D.dtype == dtype
    error = {(torch.float32, "direct"): 1e-4, (torch.float32, "iterative"): 1e-2}.get((dtype, solver), 1e-6)
    assert distance(D, expected, total_norm([f.S for f in factors])) < error


@all_metrics
@both_solvers
@both_dtypes
@shapes
def test_every_gain_is_kept_and_the_penalty_is_least(
    metric: Metric, solver: str, dtype: torch.dtype, m: int, n: int, r: int
) -> None:
    """The readouts are the gains, and tr(N D M D^T) is below that of `readout`, which keeps them as well."""
    factors = [factorise(gaussian(m, n, seed, dtype), r) for seed in range(3)]
    result = superpose(factors, solver=solver, metric=metric)
    D = superposed_matrix(factors, result)
    limit = {torch.float32: 3e-5, torch.float64: 1e-9}[dtype]
    assert all(readout_error(D, f) < limit for f in factors) and result.residual < limit
    M, N = moments(factors, metric)

    def penalty(X: Tensor) -> float:
        return float(torch.trace(N @ X.double() @ M @ X.double().T))

    plain = superposed_matrix(factors, superpose(factors, solver=solver))
    assert penalty(D) < penalty(plain) * (1 + 1e-6)
    assert float(D.norm()) > float(plain.norm()) * (1 - 1e-6), "readout is the one of least Frobenius norm"


@all_metrics
@both_solvers
@both_dtypes
@shapes
def test_one_task_gives_itself(metric: Metric, solver: str, dtype: torch.dtype, m: int, n: int, r: int) -> None:
    factors = [factorise(gaussian(m, n, 3, dtype), r)]
    result = superpose(factors, solver=solver, metric=metric)
    assert distance(result.coefficients[0], factors[0].S) < LOOSE[dtype]
    assert distance(superposed_matrix(factors, result), factors[0].matrix()) < LOOSE[dtype]


@all_metrics
@both_solvers
@both_dtypes
@shapes
def test_copies_give_one_and_opposed_copies_cancel(
    metric: Metric, solver: str, dtype: torch.dtype, m: int, n: int, r: int
) -> None:
    one = factorise(gaussian(m, n, 4, dtype), r)
    copies = superpose([one] * 3, solver=solver, metric=metric)
    assert distance(superposed_matrix([one] * 3, copies), one.matrix()) < LOOSE[dtype]
    assert copies.conflicts == ()
    both = [one, Factors(one.U, one.S, -one.Vh, one.how)]
    result = superpose(both, solver=solver, metric=metric)
    assert float(superposed_matrix(both, result).norm()) < LOOSE[dtype] * float(one.S.norm())
    assert [(c.first, c.second) for c in result.conflicts] == [(0, 1)]


@all_metrics
@both_solvers
@both_dtypes
def test_orthogonal_tasks_give_their_sum(metric: Metric, solver: str, dtype: torch.dtype) -> None:
    P, Q = orthogonal(17, 1), orthogonal(12, 2)
    gains = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    matrices = [((P[:, 3 * t : 3 * t + 3] * (gains + t)) @ Q[:, 3 * t : 3 * t + 3].T).to(dtype) for t in range(3)]
    factors = [factorise(D, 3) for D in matrices]
    result = superpose(factors, solver=solver, metric=metric)
    for t, a in enumerate(result.coefficients):
        assert distance(a, gains + t) < LOOSE[dtype]
    assert distance(superposed_matrix(factors, result), torch.stack(matrices).sum(0)) < LOOSE[dtype]


@all_metrics
@both_solvers
def test_order_rotation_scale_and_signs(metric: Metric, solver: str) -> None:
    matrices = [gaussian(9, 13, seed) @ torch.diag(torch.logspace(0, -1, 13).double()) for seed in range(3)]
    expected = merged(matrices, metric, solver)
    for order in permutations(matrices):
        assert distance(merged(order, metric, solver), expected) < 1e-9
    P, Q = orthogonal(9, 5), orthogonal(13, 6)
    assert distance(merged([P @ D @ Q for D in matrices], metric, solver), P @ expected @ Q) < 1e-9
    for c in (1e-30, 1e-3, 1e30):
        assert distance(merged([c * D for D in matrices], metric, solver), c * expected) < 1e-9
        single = merged([(c * D).float() for D in matrices], metric, solver)
        assert distance(single, c * expected) < 1e-3
    factors = [factorise(D) for D in matrices]
    flipped = [Factors(-f.U, f.S, -f.Vh, f.how) for f in factors]
    result = superpose(flipped, solver=solver, metric=metric)
    assert distance(superposed_matrix(flipped, result), expected) < 1e-9


def test_large_loadings_are_readout() -> None:
    matrices = [gaussian(11, 8, seed) for seed in range(3)]
    factors = [factorise(D) for D in matrices]
    plain = superposed_matrix(factors, superpose(factors))
    steps = [distance(merged(matrices, Metric(loading, loading)), plain) for loading in (1.0, 100.0, 1e6)]
    assert steps == sorted(steps, reverse=True) and steps[-1] < 1e-5 < 1e-3 < steps[0]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_features_are_solved_by_iteration_from_stored_blocks(n_threads: int) -> None:
    factors = [factorise(gaussian(120, 200, seed, torch.float32)) for seed in range(5)]
    result = superpose(factors, n_threads=n_threads, metric=METRICS[0])
    assert result.outcome is Outcome.ITERATIVE and result.iterations <= 12 and result.residual < 1e-5
    D = superposed_matrix(factors, result)
    assert distance(D, oracle(factors, METRICS[0])[0]) < 2e-5


@all_metrics
@shapes
def test_few_features_stay_low_rank(metric: Metric, m: int, n: int, r: int) -> None:
    factors = [factorise(gaussian(m, n, seed, torch.float32), r) for seed in range(2)]
    delta = superposed_delta(factors, superpose(factors, metric=metric))
    assert isinstance(delta, LowRank) == (2 * r < min(m, n))
    if isinstance(delta, LowRank):
        assert delta.rank == 2 * r and delta.shape == (m, n)


def test_idle_tasks_do_not_count() -> None:
    """A task that leaves the layer as it is has no share in M and N."""
    matrices = [gaussian(9, 7, seed) for seed in range(2)]
    with_zero = [matrices[0], torch.zeros(9, 7, dtype=torch.float64), matrices[1]]
    assert distance(merged(with_zero, METRICS[0]), merged(matrices, METRICS[0])) < 1e-12
    zeros = [torch.zeros(9, 7)] * 2
    assert not bool(merged(zeros, METRICS[0]).any())


def test_features_that_are_not_merged_can_be_whitened_too() -> None:
    """Their inner products with the merged ones are those of the whole space, also where only a span is handled."""
    factors = [factorise(gaussian(40, 30, seed)) for seed in range(2)]
    cut, metric = [f.leading(3) for f in factors], METRICS[2]
    M, N = moments(cut, metric)
    for f, white, lengths in zip(factors, (w := whiten(factors, metric, 1, cut)).factors, w.lengths, strict=True):
        entries = (f.U.T @ torch.linalg.solve(N, cut[0].U)) * (f.Vh @ torch.linalg.solve(M, cut[0].Vh.T))
        found = (white.U.T @ w.factors[0].U[:, :3]) * (white.Vh @ w.factors[0].Vh[:3].T)
        assert distance(found * lengths[:, None] * w.lengths[0][:3], entries) < 1e-9


def test_mapping_takes_no_metric() -> None:
    with pytest.raises(RecipeError, match="takes no metric"):
        superpose([factorise(gaussian(4, 4, 1))], "mapping", metric=METRICS[0])


def test_its_cost_grows_with_what_is_whitened() -> None:
    assert side_dimension(100, 20) == 20 and side_dimension(100, 21) == 100
    few, many = (metric_operations(512, 512, [r] * 4, METRICS[0]) for r in (16, 256))
    assert 0 < metric_operations(512, 512, [256] * 4, METRICS[1]) < many and few < many
