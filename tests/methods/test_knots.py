"""KnOTS against the paper's steps: an SVD of the task matrices side by side, TIES on its coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from spectral_oracles import Array, knots
from torch import Tensor

from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.methods import METHODS
from sftm_app.methods.base import Merged

METHOD = METHODS["knots"]
SHAPES = [(20, 13), (13, 20), (16, 16), (3, 40), (40, 3), (1, 6), (6, 1)]


def merged(matrices: Sequence[Delta], weights: Sequence[float] = (), **values: Any) -> Tensor:
    params = METHOD.params(**values)
    return delta_of(METHOD.merge(layer_of(matrices, weights or [1.0] * len(matrices)), params))


def arrays(matrices: Sequence[Delta]) -> list[Array]:
    return [dense(D).double().numpy() for D in matrices]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_matrices(shape: tuple[int, int], density: float, weights: list[float]) -> None:
    matrices = random_matrices(3, shape)
    found = merged(matrices, weights, density=density, scaling=0.7)
    assert_close(found, torch.tensor(0.7 * knots(arrays(matrices), weights, density)), 2e-5)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (8, 50), (50, 8)])
def test_lora_pairs_stay_thin_and_give_what_their_products_give(shape: tuple[int, int]) -> None:
    pairs = [low_rank(shape, rank, seed) for seed, rank in enumerate((2, 3, 5))]
    weights = [1.0, 0.5, 2.0]
    result = METHOD.merge(layer_of(pairs, weights), METHOD.params())
    delta = result.delta if isinstance(result, Merged) else result
    assert isinstance(delta, LowRank) and delta.rank <= 10
    assert_close(merged([dense(pairs[0]), *pairs[1:]], weights), dense(delta), 1e-4)
    assert_close(dense(delta), torch.tensor(0.6 * knots(arrays(pairs), weights, 0.2)), 1e-4)


def test_one_task_and_copies_come_out_as_they_are() -> None:
    for shape in SHAPES:
        (D,) = random_matrices(1, shape)
        for n_tasks in (1, 3):
            assert_close(merged([D] * n_tasks, density=1.0, scaling=1.0), D, 1e-5)


def test_outputs_may_be_rotated() -> None:
    """The basis turns with them. (Inputs may not: TIES goes entry by entry.)"""
    matrices = random_matrices(3, (20, 13))
    P = torch.linalg.qr(random_matrices(1, (20, 20), 7)[0]).Q
    assert_close(merged([P @ D for D in matrices]), P @ merged(matrices), 2e-5)
    for factor in (1e-6, 3.0):
        assert_close(merged([D * factor for D in matrices]), merged(matrices) * factor, 2e-5)


def test_opposed_tasks_cancel() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert float(merged([D, -D]).abs().max()) < 1e-6
