"""The normal equation of the least interference. `tests/methods/test_wudi.py` checks its solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import assert_close

from sftm_app.errors import NumericalError
from sftm_app.linalg import interference
from sftm_app.linalg.interference import normal_equation, solve_filtered
from sftm_app.linalg.low_rank import LowRank


def matrices(m: int, n: int, n_tasks: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(m, n, generator=generator) for _ in range(n_tasks)]


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_both_sides_against_their_definition(shape: tuple[int, int]) -> None:
    given, weights = matrices(*shape), [1.0, 0.5, 2.0]
    found = normal_equation(given, weights)
    arrays = [D.double().numpy() for D in given]
    G = sum(D.T @ D / np.sum(D**2) for D in arrays)
    B = sum(w * D @ D.T @ D / np.sum(D**2) for D, w in zip(arrays, weights, strict=True))
    assert_close(found.G.tril(), torch.tensor(np.tril(G)), 1e-12)
    assert_close(found.B, torch.tensor(B), 1e-12)
    assert found.dtype == torch.float32


def test_low_rank_and_zero_task_matrices() -> None:
    (D,) = matrices(7, 5, 1)
    thin = LowRank(torch.eye(7), D)
    found, wanted = normal_equation([thin, torch.zeros(7, 5)], [1.0, 1.0]), normal_equation([D], [1.0])
    assert torch.equal(found.G, wanted.G) and torch.equal(found.B, wanted.B)


def test_without_a_change_nothing_is_written() -> None:
    delta = solve_filtered(normal_equation([torch.zeros(4, 3)], [1.0]), torch.ones_like)
    assert delta.shape == (4, 3) and delta.dtype == torch.float32 and not delta.any()


def test_a_filter_that_keeps_nothing_gives_nothing() -> None:
    assert not solve_filtered(normal_equation(matrices(6, 4), [1.0] * 3), torch.zeros_like).any()


def test_without_eigenvectors_the_shape_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    equation = normal_equation(matrices(6, 4), [1.0] * 3)
    monkeypatch.setattr(interference.torch.linalg, "eigh", fails)
    with pytest.raises(NumericalError, match=r"4 x 4 cannot be computed \(did not converge\)"):
        solve_filtered(equation, torch.ones_like)
