"""What a merge of one layer does, up to a factor, found by forming the merged matrix; stored.py finds it faster.

Every merge here is D = c D_1 with D_1 = sum_tk a_tk u_tk v_tk^T. An Answer is about D_1: another c costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors, power_of_two
from sftm_app.linalg.low_rank import Delta, image, norm
from sftm_app.linalg.superposition import superpose, superposed_delta
from sftm_app.linalg.system import superposed
from sftm_app.linalg.tolerance import CONFLICT_ERROR, conflict_cosine


@dataclass(frozen=True, eq=False)
class Answer:
    """D_1 of one layer. coefficients, readouts: one (r_t,) tensor per task, of all its features. norm: ||D_1||_F.

    mapping_errors: those of c D_1 for a factor c, one per task. condition: None where no system was solved.
    """

    coefficients: tuple[Tensor, ...]
    readouts: tuple[Tensor, ...]
    norm: float
    mapping_errors: Callable[[float], tuple[float, ...]]
    condition: float | None = None
    conflicts: tuple[Conflict, ...] = ()
    n_dropped: int = 0


def formed_sum(factors: Sequence[Factors], weights: Sequence[float], share: float, superposes: bool) -> Answer:
    """D_1 = share * sum_t w_t D_t. superposes: a superposition gave this, which can tell conflicts."""
    coefficients = tuple(f.S * (share * weight) for f, weight in zip(factors, weights, strict=True))
    answer = _formed(factors, coefficients, superposed(factors, coefficients))
    if not superposes:
        return answer
    wanted = [f.S * weight for f, weight in zip(factors, weights, strict=True)]

    def inner(i: int, j: int) -> float:
        block = (factors[i].U.T @ factors[j].U).mul_(factors[i].Vh @ factors[j].Vh.T)
        return float(wanted[i].double() @ (block.double() @ wanted[j].double()))

    return replace(answer, conflicts=conflicts_of(factors[0].shape, wanted, answer.readouts, inner))


def formed_superposition(
    factors: Sequence[Factors], variant: str, counts: Sequence[int], weights: Sequence[float]
) -> Answer:
    """D_1 = D* of the leading `counts` features of each task, as linalg.superpose solves it."""
    cut = leading(factors, counts)
    solved = superpose(cut, variant, weights=weights)
    coefficients = tuple(
        torch.cat([a, a.new_zeros(f.rank - len(a))]) for a, f in zip(solved.coefficients, factors, strict=True)
    )
    answer = _formed(factors, coefficients, superposed_delta(cut, solved))
    return replace(answer, condition=solved.condition, conflicts=solved.conflicts, n_dropped=solved.n_dropped)


def leading(factors: Sequence[Factors], counts: Sequence[int]) -> list[Factors]:
    """The first `counts` features of each task; 0 for a task that has none."""
    return [f.cut(count) if count else f for f, count in zip(factors, counts, strict=True)]


def _formed(factors: Sequence[Factors], coefficients: tuple[Tensor, ...], D: Delta) -> Answer:
    # In units of about the largest gain, so that no square overflows or vanishes.
    scale = power_of_two(max((float(f.S[0]) for f in factors if f.rank), default=1.0))
    D = D * (1 / scale)
    images = [image(D, f.Vh.T) for f in factors]
    readouts = tuple((seen * f.U).sum(0) * scale for seen, f in zip(images, factors, strict=True))

    def mapping_errors(c: float) -> tuple[float, ...]:
        return tuple(mapping_error_of(seen, f, c, scale) for seen, f in zip(images, factors, strict=True))

    return Answer(coefficients, readouts, norm(D) * scale, mapping_errors)


def mapping_error_of(seen: Tensor, factors: Factors, c: float, scale: float) -> float:
    """|| c D V_t - U_t S_t ||_F / || S_t || from D V_t (m, r) in units of `scale`; 0 without features."""
    if not factors.rank:
        return 0.0
    largest = float(factors.S[0])
    gains = factors.S / largest
    missed = (seen * (c * scale / largest)).addcmul_(factors.U, gains, value=-1.0)
    return float(torch.linalg.vector_norm(missed)) / length(gains)


def length(values: Tensor) -> float:
    """Euclidean norm, in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def conflicts_of(
    shape: tuple[int, int], wanted: Sequence[Tensor], kept: Sequence[Tensor], inner: Callable[[int, int], float]
) -> tuple[Conflict, ...]:
    """The conflicts of a superposition, by the rule of linalg.conflicts, from what was asked for and what is read.

    wanted, kept: one (r_t,) tensor per task. inner: <D_i, D_j> of the task matrices whose gains are `wanted`.
    """
    sizes = [length(part) for part in wanted]
    lost = [length(k - w) > CONFLICT_ERROR * size for k, w, size in zip(kept, wanted, sizes, strict=True)]
    found = []
    for j in range(len(wanted)):
        for i in range(j):
            if (lost[i] or lost[j]) and sizes[i] and sizes[j]:
                cosine = inner(i, j) / (sizes[i] * sizes[j])
                if cosine < conflict_cosine(*shape):
                    found.append(Conflict(i, j, max(-1.0, cosine)))
    return tuple(sorted(found, key=lambda conflict: (conflict.first, conflict.second)))
