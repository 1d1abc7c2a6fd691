"""The polar factor against the SVD in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import assert_close

from sftm_app.linalg import polar as polar_module
from sftm_app.linalg.polar import polar


def matrix_of(gains: torch.Tensor, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """A float32 matrix with these singular values along random directions."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(gains), generator=generator, dtype=torch.float64)).Q for size in (m, n)
    )
    return ((left * gains.double()) @ right.T).float()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (64, 64), (2000, 20), (5, 1), (1, 5), (1, 1)])
def test_it_is_u_times_v_of_the_svd(shape: tuple[int, int]) -> None:
    A = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, s, Vh = np.linalg.svd(A.double().numpy(), full_matrices=False)
    found = polar(A)
    assert found.factor.dtype == torch.float32 and found.factor.shape == A.shape
    assert_close(found.factor, torch.tensor(U @ Vh), 1e-6)
    assert_close(found.gains.flip(0), s, 1e-6)


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_an_ill_conditioned_matrix_keeps_its_digits(condition: float) -> None:
    """What is left is the rounding of the matrix itself to float32, times its condition."""
    A = matrix_of(torch.logspace(0, -np.log10(condition), 60), 90, 60)
    U, _, Vh = np.linalg.svd(A.double().numpy(), full_matrices=False)
    found = polar(A)
    assert len(found.gains) == 60
    assert_close(found.factor, torch.tensor(U @ Vh), 1e-6)
    assert float((found.factor.T @ found.factor - torch.eye(60)).abs().max()) < 2e-6


@pytest.mark.parametrize("shape", [(50, 30), (30, 50)])
def test_directions_without_a_gain_are_left_out(shape: tuple[int, int]) -> None:
    A = matrix_of(torch.tensor([3.0, 2.0, 0.5]), *shape)
    U, s, Vh = np.linalg.svd(A.double().numpy(), full_matrices=False)
    found = polar(A)
    assert_close(found.factor, torch.tensor(U[:, :3] @ Vh[:3]), 1e-5)
    assert_close(found.gains.flip(0), s[:3], 1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 0), (0, 4)])
def test_a_matrix_of_zeros_has_a_factor_of_zeros(shape: tuple[int, int]) -> None:
    found = polar(torch.zeros(shape))
    assert found.factor.shape == shape and not found.factor.any() and found.gains.numel() == 0


def test_size_does_not_matter() -> None:
    A = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    for scale in (1e-30, 1e30):
        assert_close(polar(A * scale).factor, polar(A).factor, 1e-5)


def test_where_eigenvectors_cannot_be_had_the_svd_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    wanted = polar(A)

    def fails(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(polar_module.torch.linalg, "eigh", fails)
    found = polar(A)
    assert_close(found.factor, wanted.factor, 1e-5)
    assert_close(found.gains, wanted.gains, 1e-5)
