"""What a merge does to one layer up to its scaling, found by forming the delta. `stored` finds most of it faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sftm_app.engine.signs import signed_features
from sftm_app.inspection.factors import LayerFactors
from sftm_app.linalg.conflicts import Conflict, find_conflicts, inner_product
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.low_rank import Delta, LowRank, image, norm
from sftm_app.linalg.preservation import NOTHING, Preservation, of_image
from sftm_app.linalg.superposition import superpose, superposed_delta
from sftm_app.linalg.system import superposed
from sftm_app.methods.base import Combination, Features, Layer, Method
from sftm_app.methods.calling import calibrated, call_method


@dataclass(frozen=True, eq=False)
class Answer:
    """A delta D of one layer. Every other scaling of the merge follows from it.

    Attributes:
        readouts: (r_t,) per task, u^T D v of all its features.
        norm: ||D||_F.
        kept: what D keeps of each task.
        coefficients: (r_t,) per task, what each feature adds to its own readout, 0 for features that are cut off; None
            for a D outside the span of the features.
        delta: D itself, where it is not sum_tk c_tk u_tk v_tk^T.
        condition: of the linear system; None if none was solved.
        conflicts: pairs of tasks that oppose each other.
        n_dropped: directions that the tasks do not determine.
    """

    readouts: tuple[Tensor, ...]
    norm: float
    kept: tuple[Preservation, ...]
    coefficients: tuple[Tensor, ...] | None = None
    delta: Delta | None = None
    condition: float | None = None
    conflicts: tuple[Conflict, ...] = ()
    n_dropped: int = 0


def leading(factors: Sequence[Factors], counts: Sequence[int]) -> list[Factors]:
    """The first `counts` features of each task."""
    return [f.leading(count) for f, count in zip(factors, counts, strict=True)]


def formed_sum(factors: Sequence[Factors], asked: Combination) -> Answer:
    """The answer for known coefficients: D = share * sum_t w_t D_t."""
    wanted = [f.S * weight for f, weight in zip(factors, asked.weights, strict=True)]
    coefficients = tuple(gains * asked.share for gains in wanted)
    answer = replace(_formed(factors, superposed(factors, coefficients)), coefficients=coefficients)
    if not asked.reports_conflicts:
        return answer

    def inner(i: int, j: int) -> float:
        return inner_product(factors[i], wanted[i], factors[j], wanted[j])

    return replace(answer, conflicts=find_conflicts(factors[0].shape, wanted, answer.readouts, inner))


def formed_superposition(factors: Sequence[Factors], asked: Combination, n_threads: int) -> Answer:
    """The answer for D*, solved by linalg.superpose."""
    assert asked.variant is not None
    cut = leading(factors, asked.counts)
    solved = superpose(cut, asked.variant, weights=asked.weights, n_threads=n_threads, metric=asked.metric)
    coefficients = tuple(
        torch.cat([a, a.new_zeros(f.rank - len(a))]) for a, f in zip(solved.coefficients, factors, strict=True)
    )
    delta = superposed_delta(cut, solved)
    return replace(
        _formed(factors, delta),
        coefficients=coefficients,
        delta=delta if asked.metric else None,
        condition=solved.condition,
        conflicts=solved.conflicts,
        n_dropped=solved.n_dropped,
    )


def formed_merge(
    made: LayerFactors, method: Method, params: Any, weights: Sequence[float], idle_weight: float, n_threads: int
) -> Answer:
    """The answer for any method, by the method's own function.

    Args:
        made: the layer, factorised.
        method, params: of the merge.
        weights: of the tasks that hold the layer.
        idle_weight: the summed weights of adapters that leave it as it is.
        n_threads: how many threads may compute at once.
    """
    factors = made.factors
    signed = [one.factors for one in signed_features([Features(f) for f in factors], weights)]
    layer = Layer(
        task_matrices=[LowRank(f.U * f.S, f.Vh) if 2 * f.rank <= min(f.shape) else f.matrix() for f in signed],
        weights=tuple(map(abs, weights)),
        read_base=made.read_base,
        factorise=lambda: [Features(f) for f in signed],
        idle_weight=idle_weight,
        n_threads=n_threads,
        name=made.layer.name,
        task_names=made.task_names,
        prepared=made.prepare(method, params),
        depth=made.layer.place.depth,
        kind=made.layer.place.kind,
    )
    merged = calibrated(method, layer, params, call_method(method, layer, params, factors[0].shape))
    answer = replace(_formed(factors, merged.delta), delta=merged.delta)
    if merged.solve is None:
        return answer
    solve = merged.solve
    return replace(answer, condition=solve.condition, conflicts=solve.conflicts, n_dropped=solve.n_dropped)


def _formed(factors: Sequence[Factors], D: Delta) -> Answer:
    # In units of about the largest gain, so that no square overflows or vanishes.
    scale = power_of_two(max((float(f.S[0]) for f in factors if f.rank), default=1.0))
    readouts, kept = [], []
    for f in factors:
        seen = image(D, f.Vh.T)
        readouts.append((seen * f.U).sum(0))
        kept.append(of_image(seen, f) if f.rank else NOTHING)
    return Answer(tuple(readouts), norm(D * (1 / scale)) * scale, tuple(kept))
