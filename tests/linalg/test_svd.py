"""Factorising: every shape and dtype, the odd matrices, what is refused, and the ladder of methods."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linalg_cases import SETTINGS, distance, gaussian, task_matrices, with_gains
from torch import Tensor

from sftm_app.errors import InputError, NumericalError, RecipeError
from sftm_app.linalg import factorise, svd
from sftm_app.linalg.factors import energy_share, n_kept
from sftm_app.linalg.low_rank import LowRank
from sftm_app.linalg.tolerance import rcond

ERROR = {torch.float32: 5e-6, torch.float64: 1e-14}
dtypes = pytest.mark.parametrize("dtype", list(ERROR))


@dtypes
@given(matrices=task_matrices(max_tasks=1, max_size=12))
@SETTINGS
def test_factors_are_an_svd(dtype: torch.dtype, matrices: list[Tensor]) -> None:
    D = matrices[0].to(dtype)
    f = factorise(D)
    m, n = D.shape
    assert f.U.shape == (m, f.rank) and f.S.shape == (f.rank,) and f.Vh.shape == (f.rank, n) and f.shape == (m, n)
    assert {f.U.dtype, f.S.dtype, f.Vh.dtype} == {dtype}
    assert f.U.is_contiguous() and f.Vh.is_contiguous()
    eye = torch.eye(f.rank, dtype=torch.float64)
    assert float((f.U.T.double() @ f.U.double() - eye).norm()) < 10 * ERROR[dtype]
    assert float((f.Vh.double() @ f.Vh.T.double() - eye).norm()) < 10 * ERROR[dtype]
    assert bool((f.S > 0).all()) and bool((f.S.diff() <= 0).all())
    assert distance(f.matrix(), D) < 10 * ERROR[dtype]
    if f.rank:
        assert bool((f.U.gather(0, f.U.abs().argmax(0, keepdim=True)) > 0).all())


@dtypes
def test_numerical_rank(dtype: torch.dtype) -> None:
    D = with_gains(torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64), 40, 30, 1).to(dtype)
    assert factorise(D).rank == 3
    limit = rcond(dtype, 40, 30)
    assert limit == torch.finfo(dtype).eps * 40
    above = torch.diag(torch.tensor([1.0, 2 * limit, 0.5 * limit], dtype=dtype))
    above = torch.nn.functional.pad(above, (0, 27, 0, 37))
    assert factorise(above).rank == 2


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(None, 10), (1, 1), (7, 7), (10, 10), (4000, 10), (0.5, 5), (0.04, 1), (0.99, 10), (0.3, 3), (0.25, 2)],
)
def test_rank_rule(rank: int | float | None, expected: int) -> None:
    assert n_kept(rank, 10, 20) == n_kept(rank, 20, 10) == expected
    D = gaussian(10, 20, 1)
    f = factorise(D, rank)
    assert f.rank == expected
    tail = torch.linalg.svdvals(D)[expected:]
    assert float((f.matrix() - D).norm()) == pytest.approx(float(tail.norm()), abs=1e-12)


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize(
    ("rank", "expected"),
    [("1% energy", 1), ("63% energy", 1), ("65% energy", 2), ("99.9% energy", 3), ("99.9999999% energy", 4)],
)
def test_a_rank_by_energy_keeps_the_fewest_gains_that_hold_it(rank: str, expected: int, low_rank: bool) -> None:
    gains = torch.tensor([0.8, 0.5, 0.33, 0.02], dtype=torch.float64)  # squares: 0.64, 0.25, 0.1089, 0.0004
    D = with_gains(gains, 9, 6, 1)
    made = factorise(LowRank(D, torch.eye(6, dtype=torch.float64)) if low_rank else D, rank)
    assert made.rank == factorise(D).cut(rank).rank == expected
    held = float(gains[:expected].square().sum() / gains.square().sum())
    before = float(gains[: expected - 1].square().sum() / gains.square().sum())
    assert before < energy_share(rank) <= held
    np.testing.assert_allclose(made.S.numpy(), gains[:expected].numpy(), rtol=1e-9)
    assert n_kept(rank, 9, 6) == n_kept(rank, 6, 9) == 6, "the most that it can be"


def test_a_rank_by_energy_of_nothing_keeps_nothing() -> None:
    assert factorise(torch.zeros(3, 2), "90% energy").rank == factorise(torch.zeros(3, 2)).cut("1% energy").rank == 0


@pytest.mark.parametrize(
    "rank",
    [
        True,
        False,
        0,
        -1,
        1.0,
        0.0,
        1.5,
        -0.5,
        math.nan,
        "3",
        "",
        "full",
        "90%",
        "energy 0.9",
        "0% energy",
        "100% energy",
        "200% energy",
        "-5% energy",
        "nan% energy",
        "90% energy ",
        "1e1% energy",
        " 90% energy",
        "99.99999999999999999% energy",
    ],
)
def test_bad_ranks_are_refused_in_a_sentence(rank: object) -> None:
    with pytest.raises(RecipeError, match="whole number from 1 up"):
        factorise(gaussian(3, 3, 1), rank)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2).half()]
)
def test_other_shapes_and_types_are_refused(bad: Tensor) -> None:
    with pytest.raises(InputError, match="2 dimensions and be float32 or float64"):
        factorise(bad)


@dtypes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused_with_their_count(dtype: torch.dtype, value: float) -> None:
    D = gaussian(6, 5, 1, dtype)
    D[1, 2] = D[4, 0] = D[5, 4] = value
    with pytest.raises(NumericalError, match="6 x 5 holds 3 values that are NaN or infinite"):
        factorise(D)


@dtypes
@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0), (0, 0), (4, 3), (1, 1)])
def test_empty_and_zero_matrices_have_rank_zero(dtype: torch.dtype, m: int, n: int) -> None:
    f = factorise(torch.zeros(m, n, dtype=dtype))
    assert f.rank == 0 and f.shape == (m, n)
    assert f.matrix().shape == (m, n) and not bool(f.matrix().any())


def wilkinson(n: int) -> Tensor:
    off = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag((torch.arange(n) - (n - 1) / 2).abs().double()) + torch.diag(off, 1) + torch.diag(off, -1)


def hilbert(n: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    return 1.0 / (i[:, None] + i[None, :] + 1.0)


@dtypes
@pytest.mark.parametrize(
    ("D", "rank"),
    [
        (torch.ones(7, 4), 1),
        (gaussian(1, 9, 1), 1),
        (gaussian(9, 1, 1), 1),
        (gaussian(9, 1, 1) @ gaussian(1, 6, 2), 1),
        (hilbert(12), None),
        (wilkinson(21), 21),
        (torch.eye(6), 6),
        (-torch.eye(6), 6),
    ],
    ids=["ones", "row", "column", "rank one", "hilbert", "wilkinson", "eye", "minus eye"],
)
def test_odd_matrices_have_defined_answers(dtype: torch.dtype, D: Tensor, rank: int | None) -> None:
    D = D.to(dtype)
    f = factorise(D)
    assert rank is None or f.rank == rank
    assert distance(f.matrix(), D) < 10 * ERROR[dtype]
    if rank is None:  # Hilbert: gains fall below rounding, and are cut there
        assert 5 <= f.rank <= 12
        assert float(f.S[-1]) > rcond(dtype, 12, 12) * float(f.S[0])


@pytest.mark.parametrize("power", [-140, -60, 60, 122])
def test_scaling_by_a_power_of_two_changes_no_digit_of_the_directions(power: int) -> None:
    D = torch.randint(-8, 9, (9, 7), generator=torch.Generator().manual_seed(0)).float()  # stays exact when tiny
    f, g = factorise(D), factorise((D.double() * 2.0**power).float())
    assert torch.equal(f.U, g.U) and torch.equal(f.Vh, g.Vh)
    assert (
        distance(g.S.double(), f.S.double() * 2.0**power) < 1e-2
        if power < -120
        else torch.equal(g.S.double(), f.S.double() * 2.0**power)
    )


def test_entries_near_the_end_of_float32_are_scaled_first() -> None:
    """Their squares overflow; the gains still fit."""
    D = 1e37 * gaussian(8, 8, 1, torch.float32)
    assert distance(factorise(D).matrix(), D) < 1e-5


def test_gains_beyond_float32_are_refused_in_a_sentence() -> None:
    with pytest.raises(NumericalError, match="does not fit float32"):
        factorise(torch.full((64, 64), 3e38))


def test_results_are_reproducible_and_signs_do_not_depend_on_the_sign_of_the_input() -> None:
    D = gaussian(20, 30, 3, torch.float32)
    f, g, h = factorise(D), factorise(D.clone()), factorise(-D)
    assert torch.equal(f.U, g.U) and torch.equal(f.S, g.S) and torch.equal(f.Vh, g.Vh)
    assert distance(h.U, f.U) < 1e-4 and distance(-h.Vh, f.Vh) < 1e-4


def fails_for(*dtypes: torch.dtype) -> Callable[..., object]:
    real = torch.linalg.svd

    def fake(D: Tensor, full_matrices: bool) -> object:
        if D.dtype in dtypes:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
        return real(D, full_matrices=full_matrices)

    return fake


def spoilt(part: int, change: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    real = torch.linalg.svd

    def fake(D: Tensor, full_matrices: bool) -> object:
        parts = list(real(D, full_matrices=full_matrices))
        if D.dtype == torch.float32:
            parts[part] = change(parts[part])
        return tuple(parts)

    return fake


@pytest.mark.parametrize(
    ("dtype", "fake", "how"),
    [
        (torch.float32, None, "gesdd"),
        (torch.float64, None, "gesdd"),
        (torch.float32, fails_for(torch.float32), "float64"),
        (torch.float32, fails_for(torch.float32, torch.float64), "eigh"),
        (torch.float64, fails_for(torch.float64), "eigh"),
        (torch.float32, spoilt(0, lambda U: U * math.nan), "float64"),
        (torch.float32, spoilt(1, lambda S: S * 1.5), "float64"),
        (torch.float32, spoilt(2, lambda Vh: Vh.flip(0)), "float64"),
    ],
)
@pytest.mark.parametrize(("m", "n"), [(6, 6), (9, 5), (5, 9)])
def test_a_failed_or_wrong_method_falls_to_the_next(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fake: Callable[..., object] | None, how: str, m: int, n: int
) -> None:
    D = gaussian(m, n, 5, dtype)
    expected = factorise(D)
    if fake is not None:
        monkeypatch.setattr(torch.linalg, "svd", fake)
    f = factorise(D)
    assert f.how == how and f.U.dtype == dtype
    assert distance(f.matrix(), D) < 10 * ERROR[dtype]
    assert distance(f.U, expected.U) < 1000 * ERROR[dtype]


def test_when_every_method_fails_the_sentence_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge\nmore")

    monkeypatch.setattr(torch.linalg, "svd", broken)
    monkeypatch.setattr(torch.linalg, "eigh", broken)
    with pytest.raises(NumericalError, match="gesdd: did not converge; float64: did not converge; eigh: did not"):
        factorise(gaussian(3, 4, 1, torch.float32))


def test_running_out_of_memory_is_not_taken_for_a_failed_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.linalg, "svd", out_of_memory)
    with pytest.raises(RuntimeError, match="can't allocate"):
        factorise(gaussian(3, 4, 1))


@given(m=st.integers(1, 8), n=st.integers(1, 8), seed=st.integers(0, 100))
@SETTINGS
def test_the_last_rung_is_an_svd_too(m: int, n: int, seed: int) -> None:
    D = gaussian(m, n, seed)
    U, S, Vh = svd._svd_by_eigh(D)
    assert distance((U * S) @ Vh, D) < 1e-13
    assert distance(S, torch.linalg.svdvals(D)) < 1e-13


@pytest.mark.gpu
@dtypes
@pytest.mark.parametrize(("m", "n"), [(96, 96), (200, 64), (64, 200)])
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype, m: int, n: int) -> None:
    D = gaussian(m, n, 1, dtype)
    here, there = factorise(D), factorise(D.cuda())
    assert there.U.is_cuda and there.S.is_cuda and there.Vh.is_cuda and there.how in ("gesvdj", "gesvd")
    assert distance(there.S.cpu(), here.S) < 10 * ERROR[dtype]
    assert distance(there.matrix().cpu(), D) < 10 * ERROR[dtype]
