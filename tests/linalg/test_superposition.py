"""Choosing and checking solvers, weights, bounds, fallbacks, refusals. The mathematics is in test_facts.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from linalg_cases import (
    LOOSE,
    SETTINGS,
    distance,
    gaussian,
    mapping_error,
    merged,
    readout_error,
    superposed_matrix,
    task_matrices,
    total_norm,
    with_gains,
)
from torch import Tensor

from sftm_app.errors import InputError, NumericalError, RecipeError, ResourceError
from sftm_app.linalg import (
    Factors,
    Outcome,
    Superposition,
    factorise,
    solvers,
    superpose,
    superposition,
)
from sftm_app.linalg.tolerance import GROWTH_LIMIT

both_variants = pytest.mark.parametrize("variant", ["readout", "mapping"])
both_solvers = pytest.mark.parametrize("solver", ["direct", "iterative"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def check_sane(result: Superposition, factors: list[Factors]) -> Tensor:
    """What every result promises. Gives back D*."""
    D = superposed_matrix(factors, result)
    assert D.shape == factors[0].shape and D.dtype == factors[0].S.dtype and bool(torch.isfinite(D).all())
    assert [a.numel() for a in result.coefficients] == [f.rank for f in factors]
    assert result.n_features == sum(f.rank for f in factors) >= result.n_dropped >= 0
    assert math.isfinite(result.residual) and result.residual >= 0.0
    assert math.isfinite(result.condition) and result.condition >= 1.0
    scale = total_norm([f.S for f in factors])
    assert float(D.double().norm()) <= 1.001 * GROWTH_LIMIT * scale
    return D


@both_variants
@both_solvers
@both_dtypes
@given(matrices=task_matrices(max_tasks=5))
@SETTINGS
def test_every_result_is_finite_bounded_and_reported(
    variant: str, solver: str, dtype: torch.dtype, matrices: list[Tensor]
) -> None:
    factors = [factorise(D.to(dtype)) for D in matrices]
    result = superpose(factors, variant, solver)
    D = check_sane(result, factors)
    if variant == "readout" and result.residual < 1e-4:
        for f in factors:
            assert readout_error(D, f) < 1e-2


@both_variants
@both_solvers
@both_dtypes
@pytest.mark.parametrize("sign", [1, -1], ids=["alike", "opposed"])
@pytest.mark.parametrize("spectrum", ["gaussian", "decaying", "rank one"])
def test_nearly_identical_and_nearly_opposed_tasks_do_not_blow_up(
    variant: str, solver: str, dtype: torch.dtype, sign: int, spectrum: str
) -> None:
    D = {
        "gaussian": gaussian(14, 11, 1),
        "decaying": with_gains(torch.logspace(0, -3, 11, dtype=torch.float64), 14, 11, 1),
        "rank one": gaussian(14, 1, 1) @ gaussian(1, 11, 2),
    }[spectrum]
    E = gaussian(14, 11, 3)
    E = E * (D.norm() / E.norm())
    for digits in range(3, 17):
        near = [D.to(dtype), (sign * (D + 10.0**-digits * E)).to(dtype)]
        factors = [factorise(X) for X in near]
        result = superpose(factors, variant, solver)
        merged_norm = float(check_sane(result, factors).norm())
        if sign > 0:
            assert 0.9 < merged_norm / float(D.norm()) < 1.3, digits
            assert result.conflicts == ()
            assert result.residual <= 2 * 10.0**-digits + LOOSE[dtype], digits
        else:
            assert [(c.first, c.second) for c in result.conflicts] == [(0, 1)]
        if 10.0**-digits < math.sqrt(torch.finfo(dtype).eps) / 100:  # too close to tell apart: once, or not at all
            once = D if sign > 0 else 0 * D
            error = 10 * 10.0**-digits + LOOSE[dtype]
            assert distance(superposed_matrix(factors, result), once, float(D.norm())) < error, digits


@both_dtypes
def test_nearly_identical_tasks_with_different_weights_stay_bounded(dtype: torch.dtype) -> None:
    """They ask for more of a feature and for less of nearly the same one."""
    D, E = gaussian(14, 11, 1), gaussian(14, 11, 3)
    for digits in range(1, 17):
        factors = [factorise((D + s * 10.0**-digits * E).to(dtype)) for s in (0, 1)]
        result = superpose(factors, "readout", "iterative", [1.0, 0.3])
        check_sane(result, factors)
        assert result.residual > 0.3, digits


@both_solvers
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 0.02), (torch.float64, 1e-3), (torch.float64, 1e-4)])
def test_nearly_identical_tasks_are_told_apart_while_precision_allows(
    solver: str, dtype: torch.dtype, apart: float
) -> None:
    D, E = gaussian(14, 11, 1), gaussian(14, 11, 3)
    factors = [factorise(X.to(dtype)) for X in (D, D + apart * E)]
    result = superpose(factors, "readout", solver)
    assert result.n_dropped == 0 and result.residual < LOOSE[dtype] < apart
    assert result.condition > 0.1 / apart**2


@both_variants
def test_eight_nearly_identical_tasks(variant: str) -> None:
    D = gaussian(24, 24, 1)
    for digits in (2, 4, 6, 8):
        factors = [factorise((D + 10.0**-digits * gaussian(24, 24, 2 + t)).float()) for t in range(8)]
        for solver in ("direct", "iterative"):
            norm = float(check_sane(superpose(factors, variant, solver), factors).norm())
            assert 0.9 < norm / float(D.norm()) < 1.3, (digits, solver)


@both_variants
@both_solvers
def test_tasks_without_features_add_exactly_nothing(variant: str, solver: str) -> None:
    D, zero = gaussian(6, 8, 1), torch.zeros(6, 8, dtype=torch.float64)
    assert torch.equal(merged([zero, D, zero], variant, solver), merged([D], variant, solver))
    factors = [factorise(zero)] * 2
    result = superpose(factors, variant, solver)
    assert result.n_features == 0 and result.residual == 0.0 and result.condition == 1.0 and result.conflicts == ()
    assert not bool(superposed_matrix(factors, result).any())
    empty = factorise(torch.zeros(0, 4))
    assert superposed_matrix([empty], superpose([empty], variant, solver)).shape == (0, 4)


@both_variants
@both_solvers
def test_weights_scale_the_gains_of_their_task(variant: str, solver: str) -> None:
    matrices = [gaussian(9, 7, seed) for seed in range(2)]
    factors = [factorise(D) for D in matrices]
    weights = (3.0, 0.25)
    D = superposed_matrix(factors, superpose(factors, variant, solver, weights))
    expected = merged([D * w for D, w in zip(matrices, weights, strict=True)], variant, solver)
    assert distance(D, expected) < 1e-9
    tiny = superposed_matrix(factors, superpose(factors, variant, solver, (3e-30, 0.25e-30)))
    assert distance(tiny * 1e30, expected) < 1e-9


def test_tiny_weights_do_not_vanish_in_float32() -> None:
    factors = [factorise(gaussian(9, 7, seed, torch.float32)) for seed in range(2)]
    for solver in ("direct", "iterative"):
        ones, tiny = (superposed_matrix(factors, superpose(factors, "readout", solver, (w, w))) for w in (1.0, 1e-30))
        assert distance(tiny.double() * 1e30, ones) < 1e-4


@both_variants
@both_dtypes
@pytest.mark.parametrize("stored", [True, False])
def test_the_two_solvers_and_the_two_forms_of_A_agree(
    monkeypatch: pytest.MonkeyPatch, variant: str, dtype: torch.dtype, stored: bool
) -> None:
    factors = [factorise(gaussian(30, 20, seed, dtype), 0.8) for seed in range(4)]
    direct = superpose(factors, variant, "direct")
    monkeypatch.setattr(superposition, "STORED_MAX", 8192 if stored else 0)
    iterative = superpose(factors, variant, "iterative")
    assert (direct.outcome, iterative.outcome) == (Outcome.DIRECT, Outcome.ITERATIVE)
    D, E = superposed_matrix(factors, direct), superposed_matrix(factors, iterative)
    assert distance(E, D) < 5 * LOOSE[dtype]
    assert iterative.condition == pytest.approx(direct.condition, rel=0.5)
    values = torch.linalg.eigvalsh(dense(factors, variant))
    assert direct.condition == pytest.approx(float(values[-1] / values[0]), rel=0.25)
    assert iterative.condition <= 1.01 * float(values[-1] / values[0])
    # Both residuals are what they say.
    A = dense(factors, variant)
    gains = torch.cat([f.S.double() for f in factors])
    b = gains if variant == "readout" else dense(factors, "readout") @ gains
    for result in (direct, iterative):
        a = torch.cat([c.double() for c in result.coefficients])
        assert result.residual == pytest.approx(float((A @ a - b).norm() / b.norm()), rel=0.5, abs=1e-6 * LOOSE[dtype])
        assert result.residual < LOOSE[dtype]


def dense(factors: list[Factors], variant: str) -> Tensor:
    """A from the definition in the design: G_u o G_v, and G_u o (G_v G_v)."""
    U = torch.cat([f.U.double() for f in factors], 1)
    Vh = torch.cat([f.Vh.double() for f in factors], 0)
    G = Vh @ Vh.T
    return (U.T @ U) * (G if variant == "readout" else G @ G)


def test_auto_chooses_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = [factorise(gaussian(8, 8, seed)) for seed in range(2)]
    assert superpose(factors).outcome is Outcome.DIRECT
    monkeypatch.setattr(superposition, "AUTO_DIRECT_MAX", 15)
    result = superpose(factors)
    assert result.outcome is Outcome.ITERATIVE and result.iterations > 0


@both_variants
def test_an_iteration_that_does_not_converge_falls_to_the_direct_solver(
    monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    factors = [factorise(gaussian(12, 12, seed)) for seed in range(3)]
    expected = superposed_matrix(factors, superpose(factors, variant, "direct"))
    monkeypatch.setattr(superposition, "MAX_ITERATIONS", 2)
    result = superpose(factors, variant, "iterative")
    assert result.outcome is Outcome.FELL_BACK and result.iterations == 2 and result.residual < 1e-12
    assert distance(superposed_matrix(factors, result), expected) < 1e-12


@both_variants
def test_with_too_many_features_for_the_direct_solver_the_iteration_stops_early(
    monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setattr(superposition, "FALLBACK_MAX", 0)
    D, E = gaussian(16, 16, 1), gaussian(16, 16, 2)
    for distance_apart in (0.1, 0.01, 0.001):
        factors = [factorise(D), factorise(-(D + distance_apart * E))]
        result = superpose(factors, variant, "iterative")
        check_sane(result, factors)
        if variant == "readout":
            assert result.outcome is Outcome.STOPPED_EARLY and result.residual > 0.5
        assert [(c.first, c.second) for c in result.conflicts] == [(0, 1)]


def test_a_wrong_cholesky_solution_falls_to_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = [factorise(gaussian(10, 10, seed)) for seed in range(2)]
    expected = superposed_matrix(factors, superpose(factors, solver="direct"))
    real = torch.cholesky_solve
    for spoil in (lambda x: x * math.nan, lambda x: x + 1e-3):
        monkeypatch.setattr(torch, "cholesky_solve", lambda B, L, spoil=spoil: spoil(real(B, L)))
        result = superpose(factors, solver="direct")
        assert result.residual < 1e-12
        assert distance(superposed_matrix(factors, result), expected) < 1e-10


def test_when_every_solver_is_wrong_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = [factorise(gaussian(10, 10, 1))] * 2  # singular: Cholesky is out
    real = torch.linalg.eigh

    for spoil in (1.01, math.nan):
        monkeypatch.setattr(torch.linalg, "eigh", lambda A, spoil=spoil: (real(A)[0] * spoil, real(A)[1]))
        with pytest.raises(NumericalError, match="20 features could not be solved"):
            superpose(factors, solver="direct")


def test_rounding_drift_in_the_recurrence_is_noticed() -> None:
    """The residual is computed afresh: an operator that changes its mind cannot pass for converged."""
    A = torch.diag(torch.linspace(1, 3, 20, dtype=torch.float64))
    b, calls = torch.ones(20, dtype=torch.float64), []

    def drifting(x: Tensor) -> Tensor:
        calls.append(1)
        return x @ A * (1.0 + 1e-6 * len(calls))

    assert solvers.solve_iterative(lambda x: x @ A, b, 1e-12, 100, 1.0).converged
    assert not solvers.solve_iterative(drifting, b, 1e-12, 100, 1.0).converged


def test_when_nothing_is_acceptable_every_direction_is_dropped() -> None:
    A, b = torch.eye(5, dtype=torch.float64) * 2, torch.ones(5, dtype=torch.float64)
    solution = solvers.solve_direct(A, b, 1e-12, lambda a: not bool(a.any()))
    assert solution.n_dropped == 5 and solution.condition == 1.0 and solution.a.tolist() == [0.0] * 5


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_conjugate_residuals_give_the_least_norm_solution_of_inconsistent_systems(scale: float) -> None:
    Q, values = torch.linalg.qr(gaussian(12, 12, 1))[0], torch.linspace(0.5, 2, 12, dtype=torch.float64)
    values[:4] = 0.0
    A, inverse = scale * (Q * values) @ Q.T, (Q * torch.where(values > 0, 1 / (scale * values), 0.0)) @ Q.T
    for b in gaussian(2, 12, 2):
        solution = solvers.solve_iterative(lambda x: x @ A, b, 1e-12, 100, 1.0)
        assert solution.converged and solution.iterations <= 10
        assert distance(solution.a, inverse @ b) < 1e-7
        assert 1.0 < solution.condition < 4.01
    nothing = solvers.solve_iterative(lambda x: x @ A, torch.zeros_like(b), 1e-12, 100, 1.0)
    assert nothing.converged and not bool(nothing.a.any())


def test_every_outcome_has_its_word_and_its_sentence() -> None:
    """Reports hold the words."""
    words = ["direct", "iterative", "iterative->direct", "iterative (stopped early)"]
    assert [outcome.value for outcome in Outcome] == words
    assert all(Outcome(word).sentence.endswith(".") for word in words)


def test_bad_arguments_are_refused_in_sentences() -> None:
    f, g = factorise(gaussian(4, 4, 1)), factorise(gaussian(4, 5, 1))
    with pytest.raises(InputError, match="at least one task"):
        superpose([])
    with pytest.raises(InputError, match="4 x 4 float64 on cpu; 4 x 5 float64"):
        superpose([f, g])
    with pytest.raises(InputError, match="float32 on cpu; 4 x 4 float64"):
        superpose([f, factorise(gaussian(4, 4, 1, torch.float32))])
    with pytest.raises(RecipeError, match=r"'readuot' is unknown.+readout, mapping"):
        superpose([f], "readuot")
    with pytest.raises(RecipeError, match="'fast' is unknown"):
        superpose([f], solver="fast")
    with pytest.raises(RecipeError, match="1 tasks but 2 weights"):
        superpose([f], weights=[1.0, 2.0])
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(RecipeError, match="other than 0"):
            superpose([f], weights=[weight])


def test_the_direct_solver_refuses_what_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "DIRECT_MAX", 7)
    with pytest.raises(ResourceError, match="8 features, and stops at 7"):
        superpose([factorise(gaussian(4, 4, seed)) for seed in range(2)], solver="direct")


def test_coefficients_that_overflow_are_refused() -> None:
    factors = [factorise(torch.full((2, 2), 1e38))]
    with pytest.raises(NumericalError, match="NaN or infinite"):
        superpose(factors, weights=[1e300], solver="direct")


def test_readout_reads_out_exactly_and_mapping_maps_best() -> None:
    """Each variant wins on its own measure."""
    factors = [factorise(gaussian(20, 20, seed), 6) for seed in range(3)]
    D = {v: superposed_matrix(factors, superpose(factors, v)) for v in ("readout", "mapping")}
    for f in factors:
        assert readout_error(D["readout"], f) < 1e-12 < readout_error(D["mapping"], f)

    def mapped(D: Tensor) -> float:
        return sum((mapping_error(D, f) * float(f.S.norm())) ** 2 for f in factors)

    assert mapped(D["mapping"]) < mapped(D["readout"])


@pytest.mark.gpu
@both_variants
@both_solvers
@both_dtypes
def test_cuda_agrees_with_the_cpu(variant: str, solver: str, dtype: torch.dtype) -> None:
    factors = [factorise(gaussian(48, 32, seed, dtype)) for seed in range(3)]
    there = [Factors(f.U.cuda(), f.S.cuda(), f.Vh.cuda(), f.how) for f in factors]
    result = superpose(there, variant, solver)
    D = superposed_matrix(there, result)
    assert D.is_cuda
    assert distance(D.cpu(), superposed_matrix(factors, superpose(factors, variant, solver))) < 5 * LOOSE[dtype]


def test_operations_are_those_of_the_system_and_of_its_result() -> None:
    assert superposition.superpose_operations(10, 10, [2, 2], "readout") == (16 - 8) * 20 + 18 * 64 + 40
    few, more = (superposition.superpose_operations(900, 700, [r] * 4, "readout") for r in (200, 700))
    assert few < more < superposition.superpose_operations(900, 700, [700] * 4, "mapping")
