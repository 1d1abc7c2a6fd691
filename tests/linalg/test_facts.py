"""One test for every row of the design's table of facts about the superposition (its section 2)."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from linalg_cases import (
    LOOSE,
    SETTINGS,
    distance,
    gaussian,
    merged,
    oracle,
    orthogonal,
    readout_error,
    superposed_matrix,
    task_matrices,
    total_norm,
    with_gains,
)
from torch import Tensor

from sftm_app.linalg import Conflict, Factors, Outcome, factorise, superpose
from sftm_app.linalg.system import gram
from sftm_app.linalg.tolerance import GROWTH_LIMIT, conflict_cosine

both_variants = pytest.mark.parametrize("variant", ["readout", "mapping"])
both_solvers = pytest.mark.parametrize("solver", ["direct", "iterative"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
shapes = pytest.mark.parametrize(("m", "n"), [(12, 12), (17, 9), (9, 17)])


@given(matrices=task_matrices())
@SETTINGS
def test_A_is_symmetric_semidefinite_with_unit_diagonal_and_identity_blocks(matrices: list[Tensor]) -> None:
    factors = [factorise(D) for D in matrices]
    A = gram(factors)
    assert torch.equal(A, A.T)
    assert float((A.diagonal() - 1).abs().sum()) < 1e-12
    start = 0
    for f in factors:
        block = A[start : start + f.rank, start : start + f.rank]
        assert float((block - torch.eye(f.rank, dtype=A.dtype)).norm()) < 1e-12
        start += f.rank
    if A.numel():
        values = torch.linalg.eigvalsh(A)
        assert float(values[0]) > -1e-12 and float(values[-1]) <= len(matrices) + 1e-12


@both_variants
def test_conjugate_residuals_need_a_handful_of_steps_when_tasks_share_nothing(variant: str) -> None:
    factors = [factorise(gaussian(96, 64, seed, torch.float32)) for seed in range(4)]
    result = superpose(factors, variant, "iterative")
    assert result.outcome is Outcome.ITERATIVE and result.iterations <= 12
    assert result.residual < 1e-5 and 1.0 < result.condition < 10.0


@both_variants
@both_solvers
@both_dtypes
@given(matrices=task_matrices(), weights=st.sampled_from([None, (1.0, 2.0, 0.5)]))
@SETTINGS
def test_D_star_equals_the_dense_solve(
    variant: str, solver: str, dtype: torch.dtype, matrices: list[Tensor], weights: tuple[float, ...] | None
) -> None:
    """readout: the matrix of least norm that reads out every gain. mapping: the least-squares matrix of features."""
    factors = [factorise(D.to(dtype)) for D in matrices]
    assume(any(f.rank for f in factors))
    weights = weights and weights[: len(factors)]
    weighted = [Factors(f.U, f.S * w, f.Vh, f.how) for f, w in zip(factors, weights or [1.0] * 3, strict=False)]
    expected, distance_to_singular = oracle(weighted, variant)
    scale = total_norm([f.S for f in weighted])
    # Close to a change of rank rounding decides; far out the growth limit acts. Other tests go there.
    assume(distance_to_singular > 0.03 and float(expected.norm()) < 0.99 * GROWTH_LIMIT * scale)
    result = superpose(factors, variant, solver, weights)
    D = superposed_matrix(factors, result)
    assert D.dtype == dtype
    error = {(torch.float32, "direct"): 1e-5, (torch.float32, "iterative"): 5e-3}.get((dtype, solver), 1e-6)
    assert distance(D, expected, scale) < error


@both_variants
@both_solvers
@both_dtypes
@shapes
@pytest.mark.parametrize("rank", [None, 5])
def test_one_task_gives_itself(variant: str, solver: str, dtype: torch.dtype, m: int, n: int, rank: int | None) -> None:
    factors = [factorise(gaussian(m, n, 3, dtype), rank)]
    result = superpose(factors, variant, solver)
    assert distance(result.coefficients[0], factors[0].S) < LOOSE[dtype]
    assert distance(superposed_matrix(factors, result), factors[0].matrix()) < LOOSE[dtype]
    assert result.n_dropped == 0 and result.conflicts == ()


@both_variants
@both_solvers
@both_dtypes
@shapes
def test_orthogonal_tasks_give_their_sum(variant: str, solver: str, dtype: torch.dtype, m: int, n: int) -> None:
    P, Q = orthogonal(m, 1), orthogonal(n, 2)
    gains = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    matrices = [((P[:, 3 * t : 3 * t + 3] * (gains + t)) @ Q[:, 3 * t : 3 * t + 3].T).to(dtype) for t in range(3)]
    factors = [factorise(D, 3) for D in matrices]
    result = superpose(factors, variant, solver)
    for t, a in enumerate(result.coefficients):
        assert distance(a, gains + t) < LOOSE[dtype]
    assert distance(superposed_matrix(factors, result), torch.stack(matrices).sum(0)) < LOOSE[dtype]


@both_variants
@both_solvers
@both_dtypes
@shapes
@pytest.mark.parametrize("n_copies", [2, 5])
def test_copies_of_one_task_give_it_once(
    variant: str, solver: str, dtype: torch.dtype, m: int, n: int, n_copies: int
) -> None:
    D = gaussian(m, n, 4, dtype)
    factors = [factorise(D)] * n_copies
    result = superpose(factors, variant, solver)
    assert distance(superposed_matrix(factors, result), D) < LOOSE[dtype]
    assert result.conflicts == () and result.residual < LOOSE[dtype]
    if solver == "direct":
        assert result.n_dropped == (n_copies - 1) * min(m, n)
    for a in result.coefficients:  # least norm: every copy gets the same share
        assert distance(a, factors[0].S / n_copies) < 10 * LOOSE[dtype]


@both_variants
@both_solvers
@both_dtypes
@shapes
def test_opposed_copies_cancel_and_are_reported(variant: str, solver: str, dtype: torch.dtype, m: int, n: int) -> None:
    D = gaussian(m, n, 5, dtype)
    factors = [factorise(D), factorise(-D)]
    result = superpose(factors, variant, solver)
    assert float(superposed_matrix(factors, result).norm()) < LOOSE[dtype] * float(D.norm())
    assert [(c.first, c.second) for c in result.conflicts] == [(0, 1)]
    assert result.conflicts[0].cosine == pytest.approx(-1.0, abs=1e-5)
    if variant == "readout":
        assert result.residual == pytest.approx(1.0, abs=1e-4)


@both_variants
@both_solvers
@given(matrices=task_matrices())
@SETTINGS
def test_the_order_of_tasks_does_not_matter(variant: str, solver: str, matrices: list[Tensor]) -> None:
    expected = merged(matrices, variant, solver)
    _, distance_to_singular = oracle_or_skip(matrices, variant)
    assume(distance_to_singular > 0.03)
    for order in permutations(matrices):
        assert distance(merged(order, variant, solver), expected, total_norm(matrices)) < 1e-8


@both_variants
@both_solvers
@given(matrices=task_matrices(), seed=st.integers(0, 1000))
@SETTINGS
def test_rotating_inputs_and_outputs_rotates_D_star(
    variant: str, solver: str, matrices: list[Tensor], seed: int
) -> None:
    _, distance_to_singular = oracle_or_skip(matrices, variant)
    assume(distance_to_singular > 0.03)
    P, Q = orthogonal(matrices[0].shape[0], seed), orthogonal(matrices[0].shape[1], seed + 1)
    expected = P @ merged(matrices, variant, solver) @ Q
    assert distance(merged([P @ D @ Q for D in matrices], variant, solver), expected, total_norm(matrices)) < 1e-7


@both_variants
@both_solvers
@both_dtypes
@given(matrices=task_matrices(), exponent=st.sampled_from([-30, -12, -3, 3, 12, 30]))
@SETTINGS
def test_scaling_the_tasks_scales_D_star(
    variant: str, solver: str, dtype: torch.dtype, matrices: list[Tensor], exponent: int
) -> None:
    """Down to gains whose squares vanish in float32 and up to those whose squares overflow it."""
    c = 10.0**exponent
    small = [D.to(dtype) for D in matrices]
    large = [(D * c).to(dtype) for D in matrices]
    _, distance_to_singular = oracle_or_skip(small, variant)
    assume(distance_to_singular > 0.1)
    # Of tasks that oppose each other the iteration leaves sqrt(eps) of the residual in the range, over that distance.
    error = {torch.float32: 5e-3, torch.float64: 1e-7}[dtype]
    assert distance(merged(large, variant, solver), merged(small, variant, solver) * c, total_norm(large)) < error


@both_solvers
@pytest.mark.parametrize(("m", "n"), [(9, 9), (17, 9)])
def test_mapping_of_full_rank_square_readers_is_the_average(solver: str, m: int, n: int) -> None:
    matrices = [gaussian(m, n, seed) for seed in range(3)]
    assert distance(merged(matrices, "mapping", solver), torch.stack(matrices).mean(0)) < 1e-10


def test_truncation_moves_mapping_from_the_average_toward_the_sum() -> None:
    matrices = [gaussian(40, 40, seed) for seed in range(4)]
    shares = []
    for rank in (40, 20, 5, 1):
        total = torch.stack([factorise(D, rank).matrix() for D in matrices]).sum(0)
        shares.append(float((merged(matrices, "mapping", "direct", rank) * total).sum() / (total * total).sum()))
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / 4, abs=1e-9) and shares[-1] > 0.85


@both_variants
@both_dtypes
def test_more_features_than_entries_drop_directions_and_say_so(variant: str, dtype: torch.dtype) -> None:
    """T > max(m, n): 7 tasks of 4 x 5 have 28 features in a space of 20 dimensions."""
    factors = [factorise(gaussian(4, 5, seed, dtype)) for seed in range(7)]
    result = superpose(factors, variant, "direct")
    assert result.n_features == 28 and result.n_dropped >= 8
    D = superposed_matrix(factors, result)
    assert float(D.norm()) <= GROWTH_LIMIT * total_norm([f.S for f in factors])
    expected, _ = oracle(factors, variant)
    if float(expected.norm()) < GROWTH_LIMIT * total_norm([f.S for f in factors]):
        assert result.n_dropped == 8 and distance(D, expected) < 100 * LOOSE[dtype]


@both_solvers
def test_features_are_independent_unless_shared(solver: str) -> None:
    u, v, w, x = (torch.nn.functional.normalize(gaussian(8, 1, s), dim=0) for s in range(4))
    first, second = 3 * u @ v.T + w @ x.T, 3 * u @ v.T
    factors = [factorise(first), factorise(second)]
    # u v^T is not a feature of `first`, whose features are rotated, so nothing is shared exactly: all is read out.
    result = superpose(factors, "readout", solver)
    assert result.residual < 1e-10 and result.n_dropped == 0
    # The very same feature in both tasks: singular, one direction dropped, still read out exactly.
    top = factors[0]
    shared = [top, Factors(top.U[:, :1], top.S[:1], top.Vh[:1], "gesdd")]
    result = superpose(shared, "readout", solver)
    assert result.residual < 1e-10 and (solver == "iterative" or result.n_dropped == 1)
    assert distance(superposed_matrix(shared, result), first) < 1e-10


@both_variants
@both_solvers
def test_flipping_the_signs_of_features_changes_nothing(variant: str, solver: str) -> None:
    factors = [factorise(gaussian(10, 12, seed)) for seed in range(3)]
    flipped = []
    for t, f in enumerate(factors):
        signs = torch.where(gaussian(f.rank, 1, 100 + t)[:, 0] > 0, 1.0, -1.0).double()
        assert 0 < int((signs < 0).sum()) < f.rank
        flipped.append(Factors(f.U * signs, f.S, f.Vh * signs[:, None], f.how))
    expected = superposed_matrix(factors, superpose(factors, variant, solver))
    assert distance(superposed_matrix(flipped, superpose(flipped, variant, solver)), expected) < 1e-9


def test_only_the_span_of_equal_gains_is_determined() -> None:
    """A change of 1e-14 turns single vectors of a cluster freely, and moves the span's projector by about as little."""
    gains = torch.tensor([5.0, 1.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    D = with_gains(gains, 12, 9, 7)
    first, second = factorise(D), factorise(D + 1e-14 * gaussian(12, 9, 8))

    def projector(f: Factors) -> Tensor:
        return f.U[:, 1:4] @ f.U[:, 1:4].T

    assert distance(projector(second), projector(first)) < 1e-12
    assert distance(second.U[:, 1:4], first.U[:, 1:4]) > 1e-3
    assert distance(second.U[:, :1], first.U[:, :1]) < 1e-12


def test_conflicts_name_the_opposed_pairs_only() -> None:
    D, E = gaussian(16, 16, 1), gaussian(16, 16, 2)
    factors = [factorise(X) for X in (D, E, -2 * D, torch.zeros(16, 16, dtype=torch.float64))]
    result = superpose(factors, "readout")
    assert [(c.first, c.second) for c in result.conflicts] == [(0, 2)]
    assert isinstance(result.conflicts[0], Conflict) and result.conflicts[0].cosine == pytest.approx(-1.0)
    assert readout_error(superposed_matrix(factors, result), factors[1]) < 1e-9


def test_what_can_be_read_out_in_full_is_no_conflict() -> None:
    """Tasks 2 and 3 point apart, yet both are kept; tasks 0 and 1 cancel."""
    D, F, G = (torch.zeros(24, 24, dtype=torch.float64) for _ in range(3))
    D[:8, :8] = gaussian(8, 8, 1)
    F[8:, 8:] = gaussian(16, 16, 2)
    G[8:, 8:] = -0.6 * F[8:, 8:] + 0.8 * gaussian(16, 16, 3)
    assert float((F * G).sum() / (F.norm() * G.norm())) < -0.5
    assert superpose([factorise(F), factorise(G)]).conflicts == ()
    result = superpose([factorise(X) for X in (D, -D, F, G)])
    assert [(c.first, c.second) for c in result.conflicts] == [(0, 1)]


def test_one_task_against_many_is_a_conflict_with_each() -> None:
    """Thirty agree and lose only 6 %, the one before them loses everything."""
    D = gaussian(12, 1, 1) @ gaussian(1, 12, 2)
    result = superpose([factorise(-D)] + [factorise(D)] * 30)
    assert [(c.first, c.second) for c in result.conflicts] == [(0, j) for j in range(1, 31)]


@pytest.mark.parametrize(("m", "n", "limit"), [(1, 1, -0.9), (5, 5, -0.6), (20, 12, -0.194), (768, 768, -0.1)])
def test_small_matrices_point_apart_by_chance(m: int, n: int, limit: float) -> None:
    assert conflict_cosine(m, n) == pytest.approx(limit, abs=1e-3)


def test_mapping_leaks_between_agreeing_tasks_without_a_conflict() -> None:
    shared = gaussian(24, 24, 1)
    factors = [factorise(shared + 0.5 * gaussian(24, 24, seed)) for seed in (2, 3, 4)]
    result = superpose(factors, "mapping")
    D = superposed_matrix(factors, result)
    assert max(readout_error(D, f) for f in factors) > 0.1
    assert result.conflicts == ()


def oracle_or_skip(matrices: list[Tensor], variant: str) -> tuple[Tensor, float]:
    factors = [factorise(D) for D in matrices]
    assume(any(f.rank for f in factors))
    expected, distance_to_singular = oracle(factors, variant)
    assume(float(expected.norm()) < 0.99 * GROWTH_LIMIT * total_norm(matrices))
    return expected, distance_to_singular
