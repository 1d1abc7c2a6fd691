"""Features from a Gram matrix: as exact as float32 allows, when they are used, and when another method takes over."""

from __future__ import annotations

import math

import pytest
import torch
from linalg_cases import distance, gaussian, superposed_matrix, with_gains
from torch import Tensor

from sftm_app.linalg import Factors, factorise, gram_svd, superpose, svd
from sftm_app.linalg.factors import Rank
from sftm_app.linalg.tolerance import rcond

SHAPES = [(96, 96), (150, 80), (80, 150)]
SPECTRA = {
    "slow": torch.arange(1, 301, dtype=torch.float64) ** -0.7,
    "steep": torch.arange(1, 301, dtype=torch.float64) ** -1.5,
    "exponential": torch.logspace(0, -12, 301, dtype=torch.float64),
    "flat": torch.ones(300, dtype=torch.float64),
}


def tasks(m: int, n: int, spectrum: str, count: int = 4) -> list[Tensor]:
    """Float32 matrices with these gains, which share a fifth of their energy."""
    gains = SPECTRA[spectrum][: min(m, n)]
    gains = gains / gains.norm()
    shared = with_gains(torch.ones(8, dtype=torch.float64) / math.sqrt(8), m, n, 99)
    return [(math.sqrt(0.8) * with_gains(gains, m, n, seed) + math.sqrt(0.2) * shared).float() for seed in range(count)]


def exact(D: Tensor, rank: Rank) -> Factors:
    """By an SVD in float64, with what float32 takes for noise cut off."""
    U, S, Vh = torch.linalg.svd(D.double(), full_matrices=False)
    r = int((rcond(torch.float32, *D.shape) * S[0] < S).sum())
    return Factors(U[:, :r], S[:r], Vh[:r], "exact").cut(rank)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [None, 10, 0.125])
def test_the_superposition_is_the_exact_one(m: int, n: int, spectrum: str, rank: Rank) -> None:
    matrices = tasks(m, n, spectrum)
    found, wanted = [factorise(D, rank) for D in matrices], [exact(D, rank) for D in matrices]
    assert all(f.how.startswith("gram") for f in found)
    for f, g in zip(found, wanted, strict=True):
        assert f.rank == g.rank and distance(f.S, g.S) < 1e-6
        for vectors in (f.U, f.Vh.T):
            inner = vectors.T.double() @ vectors.double()
            assert float((inner - torch.eye(f.rank, dtype=torch.float64)).abs().max()) < 1e-4
    if spectrum == "flat":  # equal gains leave the vectors open, and D* with them
        return
    merged, reference = (superposed_matrix(factors, superpose(factors)) for factors in (found, wanted))
    assert distance(merged, reference) < 1e-4


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_all_features_together_are_the_matrix(m: int, n: int) -> None:
    for D in (gaussian(m, n, 1, torch.float32), *tasks(m, n, "exponential", 1)):
        f = factorise(D)
        assert f.how == "gram" and f.U.is_contiguous() and f.Vh.is_contiguous()
        assert bool((f.S.diff() <= 0).all()) and distance(f.matrix(), D) < 1e-5


@pytest.mark.parametrize(
    ("rank", "spectrum", "how"),
    [
        (None, "slow", "gram"),
        (10, "slow", "gram float32"),
        (0.125, "slow", "gram float32"),
        (0.9, "slow", "gram"),
        (10, "exponential", "gram float32"),
        (40, "exponential", "gram"),
        ("50% energy", "slow", "gram"),
        (4000, "slow", "gram"),
    ],
)
def test_float32_is_for_few_and_strong_features(rank: Rank, spectrum: str, how: str) -> None:
    D = with_gains(SPECTRA[spectrum][:96], 96, 96, 1).float()
    assert factorise(D, rank).how == how


def test_small_matrices_and_float64_are_left_to_an_svd() -> None:
    size = gram_svd.GRAM_MIN
    assert factorise(gaussian(size, 2 * size, 1, torch.float32)).how == "gram"
    assert factorise(gaussian(size - 1, 2 * size, 1, torch.float32)).how == "gesdd"
    assert factorise(gaussian(size, 2 * size, 1)).how == "gesdd"


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_degenerate_matrices(m: int, n: int) -> None:
    ones, thin = torch.ones(m, n), (gaussian(m, 3, 1) @ gaussian(3, n, 2)).float()
    sparse = torch.zeros(m, n)
    sparse[5, 7] = -2.0
    for D, rank in ((ones, 1), (thin, 3), (sparse, 1), (torch.zeros(m, n), 0)):
        for wanted in (None, 20):
            f = factorise(D, wanted)
            assert f.rank == rank and distance(f.matrix(), D) < 1e-6
    identity = factorise(torch.eye(m, n))
    assert identity.rank == min(m, n) and distance(identity.S, torch.ones(min(m, n))) < 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_a_matrix_does_not_matter(scale: float) -> None:
    D = tasks(96, 80, "slow", 1)[0]
    f, g = factorise(D), factorise((D.double() * scale).float())
    assert g.how == "gram" and distance(g.S.double() / scale, f.S.double()) < 1e-5


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("spoil", [lambda x: x * math.nan, lambda x: x * 1.01, lambda x: x.flip(0)])
@pytest.mark.parametrize("rank", [None, 10])
def test_a_wrong_result_is_noticed_and_the_next_method_taken(
    monkeypatch: pytest.MonkeyPatch, part: int, spoil: object, rank: int | None
) -> None:
    D = tasks(96, 80, "slow", 1)[0]
    real = svd.svd_by_gram

    def fake(*arguments: object) -> object:
        made = list(real(*arguments))  # type: ignore[arg-type]
        made[part] = spoil(made[part])  # type: ignore[operator]
        return tuple(made)

    monkeypatch.setattr(svd, "svd_by_gram", fake)
    f = factorise(D, rank)
    assert f.how == "gesdd" and distance(f.matrix(), exact(D, rank).matrix()) < 1e-5


def test_eigenvectors_that_do_not_come_are_left_to_an_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    D = gaussian(96, 80, 1, torch.float32)
    f = factorise(D)
    assert f.how == "gesdd" and distance(f.matrix(), D) < 1e-5


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_factors_that_were_cut_hold_no_more_memory_than_they_are(m: int, n: int) -> None:
    f = factorise(tasks(m, n, "slow", 1)[0], 10)
    assert f.how == "gram float32"
    for tensor in (f.U, f.S, f.Vh):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_few_weak_features_are_computed_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = gram_svd._eigen
    monkeypatch.setattr(gram_svd, "_eigen", lambda D, dtype: (used.append(dtype), real(D, dtype))[1])
    factorise(with_gains(SPECTRA["exponential"][:96], 96, 96, 1).float(), 40)
    assert used == [torch.float32, torch.float64]
    del used[:]
    factorise(with_gains(SPECTRA["slow"][:96], 96, 96, 1).float(), 10)
    assert used == [torch.float32]
