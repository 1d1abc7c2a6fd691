"""A of many features: products, couplings and fast solves against dense float64 formulas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from closeness import assert_close
from linalg_cases import features, gaussian, with_gains
from torch import Tensor

from sftm_app.linalg import feature_gram, preconditioner
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.feature_gram import FeatureGram, Operator, couplings
from sftm_app.linalg.preconditioner import BlockPreconditioner, solve_preconditioned
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.system import starts


def layer(shared: float, n_tasks: int = 3, m: int = 20, n: int = 16, zero: bool = False) -> list[Factors]:
    """Full-rank tasks of falling gains with a common part of rank 3, float32."""
    common = with_gains(torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64), m, n, 99)
    gains = torch.logspace(0, -1, min(m, n), dtype=torch.float64)
    made = [with_gains(gains, m, n, 2 * t) + shared * common for t in range(n_tasks)]
    if zero:
        made.insert(1, torch.zeros(m, n, dtype=torch.float64))
    return [factorise(D.float()) for D in made]


def dense_A(factors: Sequence[Factors]) -> Tensor:
    U, V, _ = features(factors)
    return (U.T @ U) * (V.T @ V)


@pytest.mark.parametrize("zero", [False, True])
def test_products_and_couplings_are_those_of_A(zero: bool) -> None:
    factors = layer(0.5, zero=zero)
    A, made = dense_A(factors), FeatureGram(factors)
    assert made.starts == starts(factors) and made.starts[-1] == len(A) == 48
    assert_close(made.matrix, A, 5e-6)
    counts = [min(f.rank, 3 + t) for t, f in enumerate(factors)]
    a = gaussian(48, 1, 5)[:, 0].float() * made.kept(counts)
    assert int(made.kept(counts).sum()) == sum(counts)
    assert_close(made.product(a, counts), A @ a.double())
    assert_close(made.block(0, 2), A[:16, made.starts[2] : made.starts[3]], 5e-6)
    apart = A.clone()
    for start, stop in zip(made.starts, made.starts[1:], strict=False):
        apart[start:stop, start:stop] = 0.0
    for found in (made.couplings, couplings(factors)):
        assert_close(found, apart.square().sum(1))


@pytest.mark.parametrize("exact", [0, 1024], ids=["coupled features only", "all features"])
@pytest.mark.parametrize("shared", [0.0, 1.0, 4.0])
def test_solves_reach_their_tolerance_at_every_rank(shared: float, exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_gram, "COUPLED_EXACT", exact)
    factors = layer(shared)
    A, made = dense_A(factors), FeatureGram(factors)
    gains = torch.cat([f.S for f in factors])
    for rank in (None, 1, 2, 5, 0.5, "50% energy", "95% energy"):
        counts = [f.cut(rank).rank for f in factors]
        kept = made.kept(counts)
        b = gains * kept
        found = made.solve(b, counts, 1e-3)
        assert found is not None
        inner = A[kept][:, kept]
        exactly = torch.linalg.solve(inner, b[kept].double())
        apart = found.a[kept].double() - exactly
        assert float(found.a[~kept].abs().sum()) == 0.0
        assert float((inner @ apart).norm()) <= 2e-3
        assert float(apart @ inner @ apart) ** 0.5 <= 2e-3
        assert_close(found.readouts, A @ found.a.double())
        values = torch.linalg.eigvalsh(inner)
        condition = float(values[-1] / values[0])
        assert condition / 1.6 <= found.condition <= 1.6 * condition


def test_the_preconditioner_saves_iterations() -> None:
    factors = [factorise(f.matrix()) for f in layer(6.0, n_tasks=4, m=40, n=40)]
    made = FeatureGram(factors)
    b = torch.cat([f.S for f in factors])
    counts = [f.rank for f in factors]
    level = made.couplings.sort().values[-13]  # of the 3 common directions of 4 tasks
    order = made.couplings.argsort(descending=True)[:12]
    assert float(made.couplings[order[-1]]) > 3 * float(level)
    block, none = BlockPreconditioner.of(made.matrix, order), BlockPreconditioner.of(made.matrix, order[:0])
    found = solve_preconditioned(lambda a: made.product(a, counts), b, block, 12, 1e-3)
    plain = solve_preconditioned(lambda a: made.product(a, counts), b, none, 0, 1e-3)
    assert found is not None and plain is not None
    assert found.iterations < 0.7 * plain.iterations
    # Each residual is at most 1e-3 of the right side.
    assert_close(made.product(found.a, counts), made.product(plain.a, counts), 2e-3, scale=float(b.norm()))


@pytest.mark.parametrize("rank", [None, 1, 5, 0.5, "90% energy"])
def test_dependent_features_get_no_answer_and_those_before_them_do(rank: int | float | str | None) -> None:
    one, two, three = layer(0.0)
    made = FeatureGram([one, two, one])
    counts = [f.cut(rank).rank for f in (one, two, one)]
    b = torch.cat([f.S for f in (one, two, one)])
    assert made.solve(b * made.kept(counts), counts, 1e-3) is None
    counts[2] = 0
    assert made.solve(b * made.kept(counts), counts, 1e-3) is not None
    assert FeatureGram([one, two, three]).solve(b, [f.rank for f in (one, two, three)], 1e-3) is not None


def test_a_block_ends_at_the_first_feature_that_depends_on_those_before() -> None:
    A = torch.eye(6)
    A[1, 4] = A[4, 1] = 1.0 - 1e-5
    order = torch.tensor([0, 1, 2, 4, 3, 5])
    block = BlockPreconditioner.of(A, order)
    assert (block.order.tolist(), block.ended) == ([0, 1, 2], 4)
    kept = torch.tensor([True, True, True, True, False, True])
    assert not block.dependent(kept) and block.prefix(kept) == 3
    kept[4] = True
    assert block.dependent(kept)
    kept[2] = False
    assert not block.dependent(kept) and block.prefix(kept) == 2
    whole = BlockPreconditioner.of(torch.eye(6), order)
    assert whole.ended is None and not whole.dependent(torch.ones(6, dtype=torch.bool))


def test_the_block_of_fewer_features_is_part_of_the_factor() -> None:
    C = gaussian(30, 9, 3)
    A = (C.T @ C / 30 + torch.eye(9, dtype=torch.float64)).float()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    block = BlockPreconditioner.of(A, order)
    r = gaussian(9, 1, 4)[:, 0].float()
    for count in range(10):
        chosen, wanted = order[:count], r.clone()
        wanted[chosen] = torch.linalg.solve(A[chosen][:, chosen], r[chosen])
        assert_close(block.apply(r, count), wanted)
        values = torch.linalg.eigvalsh(A[chosen][:, chosen]) if count else torch.ones(1)
        largest, smallest = block.extremes(count)
        assert largest == pytest.approx(float(values[-1]), rel=0.2) and largest <= float(values[-1]) * 1.001
        assert smallest == pytest.approx(float(values[0]), rel=0.2) and smallest >= float(values[0]) * 0.999


def test_another_operator_is_solved_with_its_diagonal() -> None:
    factors = layer(1.0)
    made = FeatureGram(factors)
    counts = [f.rank for f in factors]
    scales = torch.linspace(1.0, 5.0, 48)
    B = (scales[:, None] * made.matrix * scales).double()
    b = torch.cat([f.S for f in factors])
    found = made.solve(b, counts, 1e-4, Operator(lambda a: (B @ a.double()).float(), scales.square()))
    assert found is not None
    assert_close(found.a, torch.linalg.solve(B, b.double()), 1e-3)
    assert_close(found.readouts, made.matrix @ found.a)


def test_what_does_not_converge_or_is_not_definite_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = layer(1.0)
    made = FeatureGram(factors)
    counts, b = [f.rank for f in factors], torch.cat([f.S for f in factors])
    assert made.solve(b, counts, 1e-3, Operator(lambda a: -a, torch.ones(48))) is None
    assert made.solve(torch.zeros(48), counts, 1e-3) is not None
    monkeypatch.setattr(preconditioner, "MAX_ITERATIONS", 0)
    assert made.solve(b, counts, 1e-3) is None
