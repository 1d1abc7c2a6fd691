"""A low-rank matrix gives what its dense product gives, without the product being formed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import assert_close
from linalg_cases import mapping_error, readout_error, superposed_matrix

from sftm_app.errors import NumericalError
from sftm_app.linalg.low_rank import LowRank, add_to, dense, image, norm, weighted_sum
from sftm_app.linalg.superposition import superpose, superposed_delta
from sftm_app.linalg.svd import factorise


def thin(m: int, n: int, r: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(m, r, generator=generator, dtype=dtype), torch.randn(r, n, generator=generator, dtype=dtype)
    )


SHAPES = [(7, 5, 2), (5, 7, 2), (6, 6, 6), (4, 3, 9), (5, 4, 1), (5, 4, 0), (1, 4, 2)]


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_its_arithmetic_is_that_of_the_dense_matrix(m: int, n: int, r: int) -> None:
    low = thin(m, n, r)
    whole = low.left @ low.right
    X = torch.randn(n, 3)
    assert (low.shape, low.rank) == ((m, n), r)
    assert_close(dense(low), whole)
    assert_close(low @ X, whole @ X)
    assert_close(image(low, X), whole @ X)
    assert_close(dense(low * -2.5), -2.5 * whole)
    assert_close(dense(low.rows(0, m // 2)), whole[: m // 2])
    assert norm(low) == pytest.approx(float(whole.norm()), rel=1e-5, abs=1e-6)
    target = torch.ones(m, n)
    add_to(target, low)
    assert_close(target, 1 + whole)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_its_factors_are_those_of_the_dense_matrix(m: int, n: int, r: int) -> None:
    low = thin(m, n, r)
    ours, theirs = factorise(low), factorise(dense(low.left @ low.right))
    assert ours.rank == theirs.rank == min(m, n, r)
    assert_close(ours.S, theirs.S)
    assert_close(ours.matrix(), low.left @ low.right)
    assert_close(ours.U.T @ ours.U, torch.eye(ours.rank))
    assert_close(ours.Vh @ ours.Vh.T, torch.eye(ours.rank))
    assert ours.how == ("zero" if r == 0 else "qr, gesdd")


def test_a_rank_that_the_factors_only_seem_to_have_is_not_counted() -> None:
    low = thin(8, 6, 1)
    doubled = LowRank(torch.cat([low.left, low.left], 1), torch.cat([low.right, 2 * low.right]))
    assert factorise(doubled).rank == 1
    assert factorise(LowRank(low.left, torch.zeros_like(low.right))).rank == 0
    assert factorise(thin(8, 6, 4), 2).rank == 2
    assert factorise(thin(8, 6, 4), 0.5).rank == 3


def test_values_that_are_not_finite_are_refused() -> None:
    low = thin(4, 3, 2)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        factorise(replace(low, left=low.left * float("nan")))


def test_sums_stay_low_rank_only_among_low_rank_changes() -> None:
    first, second, whole = thin(6, 5, 2, 1), thin(6, 5, 1, 2), torch.randn(6, 5)
    both = weighted_sum([first, second], [0.5, -2.0])
    assert isinstance(both, LowRank) and both.rank == 3
    expected = 0.5 * dense(first) - 2 * dense(second)
    assert_close(dense(both), expected)
    mixed = weighted_sum([first, whole, second], [0.5, 3.0, -2.0])
    assert isinstance(mixed, torch.Tensor)
    assert_close(mixed, expected + 3 * whole)


@pytest.mark.parametrize("variant", ["readout", "mapping"])
@pytest.mark.parametrize("solver", ["direct", "iterative"])
def test_superposing_low_rank_changes_is_superposing_their_products(variant: str, solver: str) -> None:
    changes = [thin(20, 16, 3, seed) for seed in range(4)]
    low = [factorise(change) for change in changes]
    whole = [factorise(dense(change)) for change in changes]
    ours = superpose(low, variant, solver, [1.0, 2.0, 0.5, 1.0])
    change = superposed_delta(low, ours)
    assert isinstance(change, LowRank) and change.rank == 12
    theirs = superposed_matrix(whole, superpose(whole, variant, solver, [1.0, 2.0, 0.5, 1.0]))
    assert_close(dense(change).float(), theirs, 1e-4)
    for factors in low:
        assert readout_error(change, factors) == pytest.approx(readout_error(theirs, factors), abs=1e-4)
        assert mapping_error(change, factors) == pytest.approx(mapping_error(theirs, factors), abs=1e-4)


def test_nearly_shared_features_cancel_though_the_sum_is_never_formed() -> None:
    """Coefficients of 1e4 and more cancel: the low-rank result keeps the digits that the dense sum keeps."""
    first = thin(40, 30, 2, 1)
    second = LowRank(first.left + 1e-3 * thin(40, 30, 2, 2).left, first.right)
    factors = [factorise(first), factorise(second)]
    solved = superpose(factors, "readout", "direct")
    change = superposed_delta(factors, solved)
    assert isinstance(change, LowRank)
    for each in factors:
        dense_error = readout_error(superposed_matrix(factors, solved), each)
        assert readout_error(change, each) == pytest.approx(dense_error, abs=1e-4)
        assert readout_error(change, each) < 1e-3
