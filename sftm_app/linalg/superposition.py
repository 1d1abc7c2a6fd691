"""Superposing the singular features of several tasks: D* = sum_tk a_tk u_tk v_tk^T.

Qiu, Wu, Yao, "Superpose Singular Features for Model Merging" (arXiv 2502.10698). The paper's abstract leaves two
readings of "preserve the input-output mappings"; both are here, under names of our own.

    readout   u_tk^T D* v_tk = s_tk for every feature; D* is the matrix of least Frobenius norm that does it
    mapping   minimise sum_tk || D* v_tk - s_tk u_tk ||^2 over D* in the span of the features

Tasks that share features make the system singular: the least-norm solution counts shared features once. Tasks that
oppose each other make it inconsistent: the least-squares solution is a compromise, and the pair is a Conflict.

Both are linear in what is asked. So where tasks have weights of their own, and where that costs little, the iterative
solver answers what each task asks for by itself, and adds the answers up: with other weights nothing has to be solved
again. Tasks that are nearly the same then ask for opposite things, which takes large coefficients; so what all ask for
together is answered as well, and only what a weight differs from their mean is asked by a task alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sftm_app.errors import InputError, NumericalError, RecipeError, ResourceError
from sftm_app.linalg.conflicts import Conflict, find_conflicts
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.low_rank import Delta, LowRank, dense, norm
from sftm_app.linalg.solvers import Solution, solve_direct, solve_iterative
from sftm_app.linalg.system import System, superposed
from sftm_app.linalg.tolerance import GROWTH_LIMIT, solve_tolerance, system_rcond

VARIANTS = ("readout", "mapping")
SOLVERS = ("auto", "direct", "iterative")

# Sizes are numbers of features R. Measured on one CPU thread, eight square float32 tasks, as ratios of times: direct
# over iterative 1 at R = 64, 2 to 3 at 256, 3 to 4 at 512, 4 to 9 at 1024, 5 to 7 at 2047. Up to 512 the direct solver
# takes no longer than the SVDs that came before, and is exact; beyond, 5 to 11 products with A win.
AUTO_DIRECT_MAX = 512
# A stored A over a matrix-free one: 0.4 of the time at R = 256, 0.7 at 2047, 0.8 to 1 at 6129, where it takes 150 MB
# and gains when many products are needed: each is then R^2 instead of 4 m n R.
STORED_MAX = 8192
# When the iteration fails, the direct solver needs eigenvectors: 0.3 s at R = 1024, 2.4 s at 2048, eight times that at
# every doubling.
FALLBACK_MAX = 2048
DIRECT_MAX = 16384
MAX_ITERATIONS = 500
# Tasks that share much take 10 to 20 iterations; where each alone needs more, it is better asked together.
BY_TASKS_PRODUCTS, BY_TASKS_ITERATIONS = 15, 60
# Eight tasks of 768 x 768 took a tenth longer than together, 64 of their first 128 features nearly twice as long.
BY_TASKS_SHARE = 0.5

DIAGONAL = 1.0  # the smallest diagonal entry of A in either variant, so a lower bound of its norm


@dataclass(frozen=True, eq=False)
class Readouts:
    """Of a matrix D(a) in the span of all features: u^T D v of each, one (r_t,) tensor per task, and ||D||_F."""

    of: tuple[Tensor, ...]
    norm: float


@dataclass(frozen=True, eq=False)
class SystemSolution:
    """The answers to n right sides, (n, R) each, in units of about the largest gain, whatever the tasks' weights.

    coefficients: a. read: u^T D(a) v of every feature. asked: the same of the plain sum, where every feature has the
    gain that is asked of it. missed: A a - b. All follow from the coefficients, not from the solver's own residual.
    """

    coefficients: Tensor
    read: Tensor
    asked: Tensor
    missed: Tensor
    condition: float
    iterations: int
    n_dropped: int
    converged: bool

    def combined(self, weights: Tensor) -> SystemSolution:
        """The answer (1, R) to the right sides times weights (n,), added up."""
        combined: dict[str, Any] = {name: weights.to(part)[None] @ part for name, part in self.tensors().items()}
        return replace(self, **combined)

    def tensors(self) -> dict[str, Tensor]:
        """Those of (n, R), by their names."""
        return {name: getattr(self, name) for name in ("coefficients", "read", "asked", "missed")}


def _make(make: Callable[[], SystemSolution]) -> SystemSolution:
    return make()


@dataclass(frozen=True, eq=False)
class Superposition:
    """Coefficients a, one (r_t,) tensor per task, and how they were found.

    coefficients: float64 from the direct solver (nearly shared features get large ones, which cancel in D*), in the
    factors' dtype from the iterative one.
    solver: "direct", "iterative", "iterative->direct" (it had not converged, or its D* was too long), or "iterative
    (stopped early)" (the same, with too many features for the direct solver).
    residual: ||A a - b|| / ||b||. condition: largest over smallest eigenvalue kept, an estimate.
    n_dropped: directions that the tasks do not determine, left out by the direct solver.
    merged: D*.  plain: the sum of the (weighted) task matrices with all features at their own gains.
    """

    coefficients: tuple[Tensor, ...]
    variant: str
    solver: str
    n_features: int
    residual: float
    condition: float
    iterations: int
    n_dropped: int
    conflicts: tuple[Conflict, ...]
    merged: Readouts
    plain: Readouts


def superpose(
    factors: Sequence[Factors],
    variant: str = "readout",
    solver: str = "auto",
    weights: Sequence[float] | None = None,
    keep: Callable[[Callable[[], SystemSolution]], SystemSolution] = _make,
) -> Superposition:
    """Solve for the coefficients of all tasks' features (see the module's docstring).

    `factors`: one per task, of one shape, dtype and device. `weights`: one positive float per task, which scales that
    task's gains. `keep`: gives what was kept of the same factors and variant, whatever the weights, or what the
    function that it is given makes. Raises RecipeError for an unknown variant or solver or bad weights, InputError for
    factors that do not fit together, ResourceError when the direct solver is asked for too many features,
    NumericalError when no solver gives a finite answer.
    """
    _check(factors, variant, solver, weights)
    ranks = [f.rank for f in factors]
    n_features = sum(ranks)
    scale = max((float(f.S[0]) for f in factors if f.rank), default=0.0)
    if scale == 0.0:
        nothing = tuple(f.S.clone() for f in factors)
        none = Readouts(nothing, 0.0)
        return Superposition(nothing, variant, "direct", n_features, 0.0, 1.0, 0, 0, (), none, none)
    # Gains are solved for in units of about the largest, so that their squares neither overflow nor vanish.
    scale = power_of_two(scale)
    weights = weights or [1.0] * len(factors)
    heaviest = max(weights)
    relative = torch.tensor([weight / heaviest for weight in weights], dtype=torch.float64)
    alone = torch.block_diag(*(f.S[None] / scale for f in factors))
    gains = relative.to(alone) @ alone

    if solver == "auto":
        solver = "direct" if n_features <= AUTO_DIRECT_MAX else "iterative"
    if solver == "direct":
        found = _direct(factors, variant, gains)
    else:
        # Formed once, and only where there is something to solve.
        form = cache(lambda: System(factors, variant, gains.dtype, stored=n_features <= STORED_MAX))
        by_tasks = _by_tasks(form, factors, alone, relative, gains, keep) if variant == "readout" else None
        found = by_tasks or _iterative(form(), gains[None], solve_tolerance(gains.dtype), MAX_ITERATIONS)
        if not (found.converged and _is_moderate(factors, found.coefficients[0], found.read[0], gains)):
            if n_features <= FALLBACK_MAX:
                solver = "iterative->direct"
                found = replace(_direct(factors, variant, gains), iterations=found.iterations)
            else:
                solver = "iterative (stopped early)"
                found = _stopped_early(form(), gains)

    a, read, asked, missed = (part[0] for part in (found.coefficients, found.read, found.asked, found.missed))
    wanted = gains.to(a)
    norm_b = float((wanted if variant == "readout" else asked).norm())
    residual = float(missed.norm()) / norm_b if norm_b > 0.0 else 0.0
    coefficients = tuple(part * scale * heaviest for part in torch.split(a, ranks))
    if not (math.isfinite(residual) and all(bool(torch.isfinite(part).all()) for part in coefficients)):
        raise NumericalError(
            f"The superposition of {n_features} features ({variant}) gave coefficients that are NaN or infinite. "
            "Lower the rank, or leave this tensor to another merge method."
        )
    conflicts = find_conflicts(factors, read, wanted)
    unit = scale * heaviest

    def readouts(coefficients: Tensor, values: Tensor) -> Readouts:
        return Readouts(tuple(part * unit for part in torch.split(values, ranks)), _size(coefficients, values) * unit)

    return Superposition(
        coefficients, variant, solver, n_features, residual, found.condition, found.iterations,
        found.n_dropped, conflicts, readouts(a, read), readouts(wanted, asked),
    )  # fmt: skip


def superposed_delta(factors: Sequence[Factors], superposition: Superposition) -> Delta:
    """D* = sum_tk a_tk u_tk v_tk^T, (m, n), without any scaling: low-rank where there are few features, else dense.

    Summed in the coefficients' dtype, and where they are, so that large ones cancel as they should: a dense result is
    then turned into the factors' dtype, a low-rank one stays in the coefficients'.
    """
    change = superposed(factors, superposition.coefficients)
    return change if isinstance(change, LowRank) else change.to(factors[0].U)


def superposed_matrix(factors: Sequence[Factors], superposition: Superposition) -> Tensor:
    """The same as a dense matrix in the factors' dtype."""
    return dense(superposed_delta(factors, superposition)).to(factors[0].U)


def _direct(factors: Sequence[Factors], variant: str, gains: Tensor) -> SystemSolution:
    n = gains.numel()
    if n > DIRECT_MAX:
        raise ResourceError(
            f"The direct solver would need {3 * 8 * n * n / 2**30:.0f} GiB for {n} features, and stops at {DIRECT_MAX} "
            "features. Choose the solver auto or iterative, or lower the rank."
        )
    system = System(factors, variant, torch.float64, stored=True)
    assert system.gram is not None
    wanted = gains.to(system.gram)
    b = system.right_side(wanted[None])[0]

    def acceptable(a: Tensor) -> bool:
        return _is_moderate(factors, a, system.read_out(a[None])[0], wanted)

    solution = solve_direct(system.gram, b, system_rcond(gains.dtype, n), acceptable)
    return _solved(system, replace(solution, a=solution.a[None]), wanted[None])


def _iterative(system: System, gains: Tensor, tolerance: float, max_iterations: int) -> SystemSolution:
    """The answers to gains (n, R), one a row."""
    solution = solve_iterative(system.apply, system.right_side(gains), tolerance, max_iterations, DIAGONAL)
    return _solved(system, solution, gains)


def _by_tasks(
    form: Callable[[], System],
    factors: Sequence[Factors],
    alone: Tensor,
    weights: Tensor,
    gains: Tensor,
    keep: Callable[[Callable[[], SystemSolution]], SystemSolution],
) -> SystemSolution | None:
    """The answer for readout to `gains` (R,), which are the weights (T,) times what each task asks for, alone (T, R),
    from what all tasks ask for and what each does; None where that is not worth it, or not sound."""
    mean = weights.mean()
    if bool((weights == mean).all()) or not is_answered_by_tasks(*factors[0].shape, len(gains), len(alone)):
        return None
    tolerance = solve_tolerance(alone.dtype)
    asked = torch.cat([alone.sum(0, keepdim=True), alone])
    answers = keep(lambda: _iterative(form(), asked, tolerance, BY_TASKS_ITERATIONS))
    if answers.coefficients.shape != asked.shape:
        return None
    found = answers.combined(torch.cat([mean[None], weights - mean]))
    solved = float(found.missed.norm()) <= 2.0 * tolerance * float(gains.norm())
    moderate = solved and _is_moderate(factors, found.coefficients[0], found.read[0], gains)
    return found if found.converged and moderate else None


def is_answered_by_tasks(m: int, n: int, n_features: int, n_tasks: int) -> bool:
    """Whether the iterative solver answers for readout what each of T tasks asks for by itself, where their weights
    differ: where A is stored, and the products with T + 1 rows, 2 (T + 1) R^2 each, take little of the time that
    forming it takes, about (m + n) R^2."""
    return n_features <= STORED_MAX and 2 * BY_TASKS_PRODUCTS * (n_tasks + 1) <= BY_TASKS_SHARE * (m + n)


def _solved(system: System, solution: Solution, gains: Tensor) -> SystemSolution:
    """Of a solution (n, R) for gains (n, R)."""
    a, read, asked = solution.a, system.read_out(solution.a), system.read_out(gains)
    missed = read - gains if system.variant == "readout" else system.apply(a) - asked
    return SystemSolution(
        a, read, asked, missed, solution.condition, solution.iterations, solution.n_dropped, solution.converged
    )


def _stopped_early(system: System, gains: Tensor) -> SystemSolution:
    """The most accurate of a few early-stopped iterations whose answer is moderate: early stopping regularises."""
    for tolerance in (1e-3, 1e-2, 1e-1):
        found = _iterative(system, gains[None], tolerance, MAX_ITERATIONS)
        if _is_moderate(system.factors, found.coefficients[0], found.read[0], gains):
            break
    return found


def _is_moderate(factors: Sequence[Factors], a: Tensor, read: Tensor, gains: Tensor) -> bool:
    """||D(a)|| within GROWTH_LIMIT of sqrt(sum ||D_t||^2); read: what D(a) reads out of every feature, (R,)."""
    limit = GROWTH_LIMIT * float(gains.norm())
    # ||D(a)||^2 = a^T A a, unless rounding, a share of ||a||^2, could decide.
    quick = float(a.norm()) <= 10.0 * limit
    size = _size(a, read) if quick else norm(superposed(factors, torch.split(a, [f.rank for f in factors])))
    return size <= limit


def _size(a: Tensor, readouts: Tensor) -> float:
    """||D(a)||_F from u^T D(a) v of every feature."""
    return math.sqrt(max(0.0, float(a.double() @ readouts.double())))


def _check(factors: Sequence[Factors], variant: str, solver: str, weights: Sequence[float] | None) -> None:
    if variant not in VARIANTS:
        raise RecipeError(f"The variant {variant!r} is unknown. Choose one of {', '.join(VARIANTS)}.")
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
            if not (math.isfinite(weight) and weight > 0.0):
                raise RecipeError(f"The task weight {weight!r} is not a positive number. Give one above 0.")
