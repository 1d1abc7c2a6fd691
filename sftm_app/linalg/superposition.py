"""Superpose the singular features of several tasks: D* = sum_tk a_tk u_tk v_tk^T.

Qiu, Wu, Yao, "Superpose Singular Features for Model Merging" (arXiv 2502.10698). The paper's abstract leaves two
readings of "preserve the input-output mappings". Both are here, under names of our own:

    readout   u_tk^T D* v_tk = s_tk for every feature; D* is the matrix of least Frobenius norm that does it
    mapping   minimise sum_tk || D* v_tk - s_tk u_tk ||^2 over D* in the span of the features

With a metric (see `linalg.metric`), `readout` takes the matrix of least norm in that metric: minimum variance, ours.

Tasks that share features make the system singular: the least-norm solution counts shared features once. Tasks that
oppose each other make it inconsistent: the least-squares solution is a compromise, and the pair is a Conflict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sftm_app.errors import InputError, NumericalError, RecipeError, ResourceError
from sftm_app.linalg.conflicts import Conflict, find_conflicts, inner_product
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.low_rank import Delta, LowRank, norm
from sftm_app.linalg.metric import Metric, Whitened, metric_operations, whiten
from sftm_app.linalg.solvers import Outcome, Solution, solve_direct, solve_iterative
from sftm_app.linalg.system import System, superposed
from sftm_app.linalg.tolerance import GROWTH_LIMIT, solve_tolerance, system_rcond

VARIANTS = ("readout", "mapping")
SOLVERS = ("auto", "direct", "iterative")

# Sizes are numbers of features R. Measured on one CPU thread, eight square float32 tasks, time of the direct solver
# over that of the iterative one: 1 at R = 64, 2 to 3 at 256, 3 to 4 at 512, 4 to 9 at 1024, 5 to 7 at 2047. Up to 512
# the direct solver takes no longer than the SVDs before it, and is exact; beyond, 5 to 11 products with A win.
AUTO_DIRECT_MAX = 512
# A stored A over a matrix-free one: 0.4 of the time at R = 256, 0.7 at 2047, 0.8 to 1 at 6129, where it takes 150 MB
# and pays when many products are needed: each takes R^2 instead of 4 m n R operations.
STORED_MAX = 8192
# When the iteration fails, the direct solver needs eigenvectors: 0.3 s at R = 1024, 2.4 s at 2048, eight times as long
# at every doubling.
FALLBACK_MAX = 2048
DIRECT_MAX = 16384
MAX_ITERATIONS = 500
# Tasks that share much take 10 to 20 iterations.
USUAL_ITERATIONS = 10

DIAGONAL = 1.0  # the smallest diagonal entry of A in either variant, so a lower bound of its norm


@dataclass(frozen=True, eq=False)
class SystemSolution:
    """A solution and what it does, computed from its coefficients rather than taken from the solver.

    Attributes:
        solution: the coefficients (R,), in units of about the largest gain.
        readouts: (R,), u^T D(a) v of every feature.
        residual: ||A a - b|| / ||b||.
    """

    solution: Solution
    readouts: Tensor
    residual: float


@dataclass(frozen=True, eq=False)
class Superposition:
    """Coefficients, and how they were found.

    Attributes:
        coefficients: (r_t,) per task: float64 from the direct solver (nearly shared features get large ones, which
            cancel in D*), in the factors' dtype from the iterative one. In a metric they are a_tk A_tk,tk: what each
            feature adds to its own readout, as without a metric, where A has a unit diagonal.
        outcome: which solver gave them.
        n_features: R, the number of unknowns.
        residual: ||A a - b|| / ||b||.
        condition: largest over smallest eigenvalue kept, an estimate.
        iterations: of the iterative solver.
        n_dropped: directions that the tasks do not determine, left out by the direct solver.
        conflicts: pairs of tasks that oppose each other.
        whitened: the features in the metric, if there is one.
    """

    coefficients: tuple[Tensor, ...]
    outcome: Outcome
    n_features: int
    residual: float
    condition: float
    iterations: int
    n_dropped: int
    conflicts: tuple[Conflict, ...]
    whitened: Whitened | None = None


def superpose(
    factors: Sequence[Factors],
    variant: str = "readout",
    solver: str = "auto",
    weights: Sequence[float] | None = None,
    n_threads: int = 1,
    metric: Metric | None = None,
) -> Superposition:
    """Solve for the coefficients of all tasks' features (see the module's docstring).

    Args:
        factors: one per task, of one shape, dtype and device.
        variant: "readout" or "mapping".
        solver: "direct", "iterative", or "auto" to choose by the number of features.
        weights: one positive factor per task on its gains; None for ones.
        n_threads: how many threads form the system.
        metric: for `readout`, the norm to minimise; None for the Frobenius norm.

    Returns:
        A Superposition; superposed_delta forms D* from it.

    Raises:
        RecipeError: unknown variant or solver, or bad weights.
        InputError: factors that do not fit together.
        ResourceError: the direct solver was asked for too many features.
        NumericalError: no solver gives a finite answer.
    """
    _check(factors, variant, solver, weights, metric)
    ranks = [f.rank for f in factors]
    n_features = sum(ranks)
    scale = max((float(f.S[0]) for f in factors if f.rank), default=0.0)
    if scale == 0.0:
        nothing = tuple(f.S.clone() for f in factors)
        return Superposition(nothing, Outcome.DIRECT, n_features, 0.0, 1.0, 0, 0, ())
    # In units of about the largest gain, so that squares neither overflow nor vanish.
    scale = power_of_two(scale)
    weights = weights or [1.0] * len(factors)
    heaviest = max(weights)
    wanted = [f.S / scale * (weight / heaviest) for f, weight in zip(factors, weights, strict=True)]
    whitened = whiten(factors, metric, n_threads) if metric else None
    lengths = torch.cat(whitened.lengths) if whitened else torch.ones_like(torch.cat(wanted))
    problem = _Problem(whitened.factors if whitened else factors, variant, whitened is None, lengths, n_threads)
    gains = torch.cat(wanted) / lengths

    if solver == "auto":
        solver = "direct" if n_features <= AUTO_DIRECT_MAX else "iterative"
    if solver == "direct":
        outcome, found = Outcome.DIRECT, _direct(problem, gains)
    else:
        outcome, found = _iterative_first(problem, gains)

    a = found.solution.a * lengths.to(found.solution.a)
    coefficients = tuple(part * scale * heaviest for part in torch.split(a, ranks))
    if not (math.isfinite(found.residual) and all(bool(torch.isfinite(part).all()) for part in coefficients)):
        raise NumericalError(
            f"The superposition of {n_features} features ({variant}) gave coefficients that are NaN or infinite. "
            "Lower the rank, or leave this tensor to another merge method."
        )
    readouts = torch.split(found.readouts * lengths.to(found.readouts), ranks)

    def inner(i: int, j: int) -> float:
        return inner_product(factors[i], wanted[i], factors[j], wanted[j])

    return Superposition(
        coefficients,
        outcome,
        n_features,
        found.residual,
        found.solution.condition,
        found.solution.iterations,
        found.solution.n_dropped,
        find_conflicts(factors[0].shape, [part.to(a) for part in wanted], readouts, inner),
        whitened,
    )


def superposed_delta(factors: Sequence[Factors], superposition: Superposition) -> Delta:
    """Form D* = sum_tk a_tk u_tk v_tk^T, or D* = N^-1 (sum_tk a_tk u_tk v_tk^T) M^-1, without any scaling.

    The sum is taken in the coefficients' dtype and on their device, so that large coefficients cancel as they should.

    Returns:
        (m, n): low-rank in the coefficients' dtype where there are few features, otherwise dense in the factors' dtype.
    """
    whitened = superposition.whitened
    if whitened is None:
        delta = superposed(factors, superposition.coefficients)
    else:
        given = zip(superposition.coefficients, whitened.lengths, strict=True)
        a = [part / lengths.to(part) for part, lengths in given]
        X = superposed(whitened.factors, a, factors[0].shape)
        delta = whitened.restore(X if isinstance(X, LowRank) else X.to(factors[0].U))
    return delta if isinstance(delta, LowRank) else delta.to(factors[0].U)


def superpose_operations(m: int, n: int, kept: Sequence[int], variant: str, metric: Metric | None = None) -> float:
    """Estimate the floating-point operations of forming and solving the system and of forming D*.

    Args:
        m, n: the shape of the task matrices.
        kept: the number of features per task.
        variant: "readout" or "mapping".
        metric: as for `superpose`.

    Returns:
        Operations in units of those of large products; slower ones count for more.
    """
    n_features = sum(kept)
    work = float(n_features**2 - sum(r * r for r in kept)) * (m + n)
    if n_features <= AUTO_DIRECT_MAX:
        work += 18.0 * n_features**3
    else:
        work += 20.0 * USUAL_ITERATIONS * n_features**2
    if variant == "mapping":
        work += 2.0 * n * n * n_features + 2.0 * n * min(n, n_features) * n_features
    if metric:
        work += metric_operations(m, n, kept, metric)
    return work + (2.0 * m * n * n_features if n_features >= min(m, n) else float(m * n_features))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What to solve.

    Attributes:
        factors: per task.
        variant: "readout" or "mapping".
        orthonormal: whether the directions of each task are orthonormal.
        lengths: (R,), what readouts are multiplied by in the unwhitened problem; ones without a metric.
        n_threads: how many threads form the system.
    """

    factors: Sequence[Factors]
    variant: str
    orthonormal: bool
    lengths: Tensor
    n_threads: int


def _direct(problem: _Problem, gains: Tensor) -> SystemSolution:
    n, factors = gains.numel(), problem.factors
    if n > DIRECT_MAX:
        raise ResourceError(
            f"The direct solver would need {3 * 8 * n * n / 2**30:.0f} GiB for {n} features, and stops at {DIRECT_MAX} "
            "features. Choose the solver auto or iterative, or lower the rank."
        )
    system = System(factors, problem.variant, torch.float64, stored=True)
    assert system.gram is not None
    wanted = gains.to(system.gram)

    def acceptable(a: Tensor) -> bool:
        return _is_moderate(factors, a, system.read_out(a), wanted)

    rcond = system_rcond(gains.dtype, n)
    solution = solve_direct(system.gram, system.right_side(wanted), rcond, acceptable)
    return _checked(system, solution, wanted, problem.lengths)


def _iterative_first(problem: _Problem, gains: Tensor) -> tuple[Outcome, SystemSolution]:
    """Iterate; where that fails, solve directly if there are few enough features, otherwise stop early."""
    n_features, factors = gains.numel(), problem.factors
    stored = n_features <= STORED_MAX
    system = System(factors, problem.variant, gains.dtype, stored, problem.orthonormal, problem.n_threads)
    found = _iterative(system, gains, solve_tolerance(gains.dtype), problem.lengths)
    if found.solution.converged and _is_moderate(factors, found.solution.a, found.readouts, gains):
        return Outcome.ITERATIVE, found
    if n_features <= FALLBACK_MAX:
        direct = _direct(problem, gains)
        solution = replace(direct.solution, iterations=found.solution.iterations)
        return Outcome.FELL_BACK, replace(direct, solution=solution)
    # Early stopping regularises: take the most accurate of a few looser solutions that is moderate.
    for tolerance in (1e-3, 1e-2, 1e-1):
        found = _iterative(system, gains, tolerance, problem.lengths)
        if _is_moderate(factors, found.solution.a, found.readouts, gains):
            break
    return Outcome.STOPPED_EARLY, found


def _iterative(system: System, gains: Tensor, tolerance: float, lengths: Tensor) -> SystemSolution:
    solution = solve_iterative(system.apply, system.right_side(gains), tolerance, MAX_ITERATIONS, DIAGONAL)
    return _checked(system, solution, gains, lengths)


def _checked(system: System, solution: Solution, gains: Tensor, lengths: Tensor) -> SystemSolution:
    readouts, b, scale = system.read_out(solution.a), system.right_side(gains), lengths.to(gains)
    missed = ((readouts if system.variant == "readout" else system.apply(solution.a)) - b) * scale
    norm_b = float((b * scale).norm())
    return SystemSolution(solution, readouts, float(missed.norm()) / norm_b if norm_b > 0.0 else 0.0)


def _is_moderate(factors: Sequence[Factors], a: Tensor, readouts: Tensor, gains: Tensor) -> bool:
    """Whether ||D(a)|| is within GROWTH_LIMIT of the norm of all gains; in a metric, both of the whitened problem."""
    limit = GROWTH_LIMIT * float(gains.norm())
    if float(a.norm()) <= 10.0 * limit:
        # ||D(a)||^2 = a^T A a, unless rounding, a share of ||a||^2, could decide.
        size = math.sqrt(max(0.0, float(a.double() @ readouts.double())))
    else:
        size = norm(superposed(factors, torch.split(a, [f.rank for f in factors])))
    return size <= limit


def _check(
    factors: Sequence[Factors], variant: str, solver: str, weights: Sequence[float] | None, metric: Metric | None
) -> None:
    if variant not in VARIANTS:
        raise RecipeError(f"The variant {variant!r} is unknown. Choose one of {', '.join(VARIANTS)}.")
    if metric and variant != "readout":
        raise RecipeError(f"The variant {variant!r} takes no metric. Choose readout.")
    if solver not in SOLVERS:
        raise RecipeError(f"The solver {solver!r} is unknown. Choose one of {', '.join(SOLVERS)}.")
    if not factors:
        raise InputError("A superposition needs at least one task, but none was given. Add a task.")
    kinds = {f"{f.shape[0]} x {f.shape[1]} {str(f.S.dtype).removeprefix('torch.')} on {f.S.device}" for f in factors}
    if len(kinds) > 1:
        raise InputError(
            f"All tasks' factors must share one shape, type and device, but found {'; '.join(sorted(kinds))}. "
            "Factorise the same layer of every task in the same way."
        )
    if weights is not None:
        if len(weights) != len(factors):
            raise RecipeError(f"There are {len(factors)} tasks but {len(weights)} weights. Give one weight per task.")
        for weight in weights:
            if not (math.isfinite(weight) and weight != 0.0):
                raise RecipeError(f"The task weight is {weight!r}. Give a number other than 0.")
