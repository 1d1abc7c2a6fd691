"""Readout and mapping errors of any delta, at every scaling; and the stored forms of A."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from linalg_cases import SETTINGS, distance, gaussian, readout_error, superposed_matrix, task_matrices, with_gains
from torch import Tensor

from sftm_app.linalg import Factors, Outcome, factorise, superpose, superposed_delta, system
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.preservation import errors, measure
from sftm_app.linalg.system import Blocks, gram, superposed

FACTORS = (1.0, 0.3, 0.0)


def direct(D: Tensor, f: Factors, lost: float = 0.0) -> tuple[float, float]:
    """From the definition, in float64."""
    U, S, V = f.U.double(), f.S.double(), f.Vh.double().T
    total = float(S.square().sum()) + lost
    read = (U.T @ D.double() @ V).diagonal() - S
    missed = D.double() @ V - U * S
    return tuple(math.sqrt((float(x.square().sum()) + lost) / total) if total else 0.0 for x in (read, missed))  # type: ignore[return-value]


@pytest.mark.parametrize("variant", ["readout", "mapping"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(matrices=task_matrices(max_tasks=4))
@SETTINGS
def test_errors_are_those_of_the_merged_matrix(variant: str, dtype: torch.dtype, matrices: list[Tensor]) -> None:
    weights = [1.0, 0.5, 2.0, 1.5][: len(matrices)]
    factors = [factorise(D.to(dtype)) for D in matrices]
    solved = superpose(factors, variant, weights=weights)
    gains = [f.S * w for f, w in zip(factors, weights, strict=True)]
    D, plain = superposed_delta(factors, solved), superposed(factors, gains)
    tolerance = 2e-3 if dtype == torch.float32 else 1e-6
    for factor in FACTORS:
        for delta in (D, plain):
            at_once, later = errors(measure(delta * factor, factors)), errors(measure(delta, factors), factor)
            for t, f in enumerate(factors):
                wanted = direct(dense(delta) * factor, f)
                for found in (at_once, later):
                    assert (found.readout[t], found.mapping[t]) == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("m", "n"), [(40, 30), (30, 40), (36, 36)])
@pytest.mark.parametrize("rank", [8, 30, None])
def test_features_that_were_cut_count_as_lost(m: int, n: int, rank: int | None) -> None:
    matrices = [gaussian(m, n, seed, torch.float32) for seed in range(3)]
    whole = [factorise(D) for D in matrices]
    factors = [f.cut(rank) for f in whole]
    lost = [float(f.S.square().sum() - g.S.square().sum()) for f, g in zip(whole, factors, strict=True)]
    solved = superpose(factors)
    D = superposed_matrix(factors, solved)
    found = errors(measure(superposed_delta(factors, solved), factors, lost))
    for t, f in enumerate(factors):
        assert (found.readout[t], found.mapping[t]) == pytest.approx(direct(D, f, lost[t]), abs=1e-4)
        assert found.readout[t] == pytest.approx(math.sqrt(lost[t]) / float(whole[t].S.norm()), abs=1e-4)


def test_small_errors_keep_their_digits() -> None:
    """Of 1 - 2 + 1 in float32 nothing below 3e-4 would be left."""
    f = factorise(with_gains(torch.logspace(0, -2, 20, dtype=torch.float64), 30, 20, 1).float())
    kept = measure(superposed_delta([f], superpose([f])), [f])
    found = errors(kept)
    assert found.readout[0] < 2e-6 and found.mapping[0] < 2e-6 and readout_error(f.matrix(), f) < 2e-6
    off = errors(kept, 1.001)
    assert off.mapping == pytest.approx([1e-3], rel=1e-3) and off.readout == pytest.approx([1e-3], rel=1e-3)


@pytest.mark.parametrize("weight", [0.25, 1.0, 8.0])
def test_small_errors_keep_their_digits_at_every_factor(weight: float) -> None:
    """c D may be a task to the last digits where D is a multiple of it."""
    gains = torch.logspace(0, -2, 20, dtype=torch.float64)
    f = factorise(with_gains(gains, 30, 20, 1).float())
    solved = superpose([f], weights=[weight])
    D = superposed_matrix([f], solved)
    found = errors(measure(D, [f]), 1 / weight)
    expected = direct(D.double() / weight, f)
    assert found.mapping[0] == pytest.approx(expected[1], abs=1e-7) and found.mapping[0] < 2e-6
    assert found.readout[0] == pytest.approx(expected[0], abs=1e-7) and found.readout[0] < 2e-6


@pytest.mark.parametrize(("m", "n"), [(20, 20), (12, 30), (30, 12)])
@pytest.mark.parametrize("mapping", [False, True])
def test_many_features_are_multiplied_block_by_block(
    m: int, n: int, mapping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = [factorise(gaussian(m, n, seed).float(), rank) for seed, rank in enumerate((4, 9, 1))]
    V = torch.cat([f.Vh for f in factors]).double()
    C = V.T @ V if mapping else None
    at_once = gram(factors, C, torch.float64)
    monkeypatch.setattr(system, "ONE_GEMM_ELEMENTS", 0)
    in_blocks = gram(factors, C, torch.float64)
    U = torch.cat([f.U for f in factors], dim=1).double()
    expected = (U.T @ U) * (V @ (V.T if C is None else C @ V.T))
    for A in (at_once, in_blocks):
        assert torch.equal(A, A.T) and A.dtype == torch.float64 and distance(A, expected) < 1e-12
    solved = superpose(factors, "mapping" if mapping else "readout")
    assert solved.outcome is Outcome.DIRECT and solved.residual < 1e-9


@pytest.mark.parametrize(("m", "n"), [(20, 20), (12, 30), (30, 12)])
def test_blocks_are_the_matrix(m: int, n: int) -> None:
    matrices = [gaussian(m, n, 1), torch.zeros(m, n, dtype=torch.float64), gaussian(m, n, 2), gaussian(m, n, 1)]
    factors = [factorise(D.float(), 0.8) for D in matrices]
    A, a = gram(factors, dtype=torch.float64), gaussian(1, sum(f.rank for f in factors), 3)[0]
    blocks, own = Blocks(factors, True, 2), Blocks(factors, False, 2)
    assert len(blocks.blocks) == 3 and distance(blocks.product(a.float()), a @ A) < 2e-6
    assert len(own.blocks) == 6 and distance(own.product(a.float()), a @ A) < 2e-6
