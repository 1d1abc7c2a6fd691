"""WUDI and SWUDI against the papers' objective and its closed form, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from spectral_oracles import Array, filtered, normal
from torch import Tensor

from sftm_app.linalg import interference
from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.methods import METHODS
from sftm_app.methods.base import Merged

SHAPES = [(20, 13), (13, 20), (16, 16), (3, 40), (40, 3), (1, 6), (6, 1), (200, 5), (5, 200)]
WEIGHTS = [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]]


def merged(name: str, matrices: Sequence[Delta], weights: Sequence[float] = (), **values: Any) -> Tensor:
    """The whole minimum, unless a cut-off is given."""
    method, weights = METHODS[name], weights or [1.0] * len(matrices)
    values = ({"cutoff": 0.0} if name == "wudi" else {}) | values
    return delta_of(method.merge(layer_of(matrices, weights), method.params(**values)))


def arrays(matrices: Sequence[Delta]) -> list[Array]:
    return [dense(D).double().numpy() for D in matrices]


def loss(D: Array, matrices: Sequence[Array], weights: Sequence[float]) -> float:
    """Cheng et al. 2025, equation 10, with task weights."""
    terms = [np.sum(((D - w * Dt) @ Dt.T) ** 2) / np.sum(Dt**2) for Dt, w in zip(matrices, weights, strict=True)]
    return float(np.sum(terms))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_is_the_solution_of_the_normal_equation_of_least_norm(
    shape: tuple[int, int], weights: list[float]
) -> None:
    matrices = random_matrices(3, shape)
    G, B = normal(arrays(matrices), weights)
    wanted = B @ np.linalg.pinv(G, rcond=1e-10, hermitian=True)
    assert_close(merged("wudi", matrices, weights), torch.tensor(wanted), 1e-5)


@pytest.mark.parametrize("shape", [(20, 13), (13, 20)])
def test_nothing_near_wudi_interferes_less(shape: tuple[int, int]) -> None:
    matrices, weights = random_matrices(3, shape), [1.0, 0.5, 2.0]
    found, given = merged("wudi", matrices, weights).double().numpy(), arrays(matrices)
    least = loss(found, given, weights)
    for step in (1e-2, 1.0):
        for seed in range(5):
            assert loss(found + step * np.random.default_rng(seed).standard_normal(shape), given, weights) > least
    assert least < loss(np.sum([w * D for D, w in zip(given, weights, strict=True)], axis=0), given, weights)


def test_long_descent_comes_to_wudi() -> None:
    """Gradient descent on the paper's loss from the sum of the task matrices, as the paper starts it."""
    matrices = arrays(random_matrices(3, (8, 6)))
    G, B = normal(matrices, [1.0] * 3)
    D = np.sum(matrices, axis=0)
    for _ in range(20000):
        D = D - 0.5 * (D @ G - B)
    assert_close(merged("wudi", [torch.tensor(M).float() for M in matrices]), torch.tensor(D), 1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_swudi_s_filter(shape: tuple[int, int], weights: list[float]) -> None:
    matrices = random_matrices(3, shape)
    given = arrays(matrices)

    def exponential(shares: Array) -> Array:
        return np.asarray(1 - np.exp(-30 * shares))

    found = merged("swudi", matrices, weights, time=30.0)
    assert_close(found, torch.tensor(filtered(given, weights, exponential)), 1e-5)

    def two(shares: Array) -> Array:
        return exponential(shares) * (np.arange(len(shares)) < 2)

    found = merged("swudi", matrices, weights, time=30.0, rank=2)
    assert_close(found, torch.tensor(filtered(given, weights, two)), 1e-5)


def test_swudi_by_a_share_of_the_energy() -> None:
    matrices = random_matrices(3, (20, 13))
    values = np.linalg.eigvalsh(normal(arrays(matrices), [1.0] * 3)[0])[::-1]
    count = int(np.searchsorted(np.cumsum(values) / values.sum(), 0.8)) + 1
    assert 1 < count < 13
    found = merged("swudi", matrices, rank="80% energy")
    assert_close(found, merged("swudi", matrices, rank=count), 1e-6)


@pytest.mark.parametrize("cutoff", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(20, 13), (13, 20)])
def test_the_cut_off_leaves_out_weak_directions_of_the_inputs(shape: tuple[int, int], cutoff: float) -> None:
    matrices = random_matrices(3, shape)
    matrices = [D * torch.logspace(0, -2, shape[1]) for D in matrices]
    wanted = filtered(arrays(matrices), [1.0] * 3, lambda shares: shares > cutoff**2)
    assert np.linalg.matrix_rank(wanted) < min(shape)
    assert_close(merged("wudi", matrices, cutoff=cutoff), torch.tensor(wanted), 1e-5)


def test_what_only_rounding_writes_is_left_out() -> None:
    """Stored in half precision, random in a direction that no task uses: the whole minimum is as large there."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(60, 40, generator=generator) for _ in range(3)]
    stored = [D + 1e-3 * torch.randn(60, 40, generator=generator) for D in matrices]
    for D, like in zip(stored, matrices, strict=True):
        D[:, :10] -= like[:, :10]
    found, whole = merged("wudi", stored, cutoff=0.03), merged("wudi", stored)
    assert float(found[:, :10].norm()) < 0.01 * float(found.norm())
    assert float((whole - found).norm()) > 0.1 * float(found.norm())


def test_swudi_for_a_long_time_is_wudi() -> None:
    matrices = random_matrices(3, (20, 13))
    assert_close(merged("swudi", matrices, time=1000.0), merged("wudi", matrices), 1e-4)


def test_one_task_comes_out_as_it_is_and_copies_count_once() -> None:
    for shape in SHAPES:
        (D,) = random_matrices(1, shape)
        assert_close(merged("wudi", [D]), D, 1e-5)
        assert_close(merged("wudi", [D] * 4), D, 1e-5)
        assert_close(merged("wudi", [D], [0.5]), D / 2, 1e-5)
        assert float(merged("wudi", [D, -D]).abs().max()) < 1e-5 * float(D.abs().max())


def test_tasks_without_common_inputs_add_up() -> None:
    first, second = random_matrices(2, (9, 10))
    first[:, 4:], second[:, :4] = 0, 0
    assert_close(merged("wudi", [first, second]), first + second, 1e-5)


def test_a_task_without_a_change_counts_nothing() -> None:
    matrices = random_matrices(2, (9, 10))
    assert_close(merged("wudi", [*matrices, torch.zeros(9, 10)]), merged("wudi", matrices), 1e-6)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
def test_rotations_and_scale(name: str) -> None:
    matrices = random_matrices(3, (20, 13))
    P, Q = (
        torch.linalg.qr(square).Q for square in (*random_matrices(1, (20, 20), 7), *random_matrices(1, (13, 13), 8))
    )
    one = merged(name, matrices)
    assert_close(merged(name, [P @ D @ Q for D in matrices]), P @ one @ Q, 2e-5)
    for factor in (1e-12, 1e12):
        assert_close(merged(name, [D * factor for D in matrices]), one * factor, 2e-5)


@pytest.mark.parametrize("name", ["wudi", "swudi"])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (8, 50)])
def test_lora_pairs_stay_thin_and_give_what_their_products_give(name: str, shape: tuple[int, int]) -> None:
    pairs = [low_rank(shape, rank, seed) for seed, rank in enumerate((2, 3, 5))]
    method, weights = METHODS[name], [1.0, 0.5, 2.0]
    result = method.merge(layer_of(pairs, weights), method.params())
    delta = result.delta if isinstance(result, Merged) else result
    assert isinstance(delta, LowRank) and delta.rank <= 10
    cutoff = {"cutoff": 0.03} if name == "wudi" else {}
    wanted = merged(name, [dense(D) for D in pairs], weights, **cutoff)
    assert_close(dense(delta), wanted, 1e-4)
    assert_close(merged(name, [dense(pairs[0]), *pairs[1:]], weights, **cutoff), wanted, 1e-4)


@pytest.mark.parametrize("rows", [4, 7])
@pytest.mark.parametrize("shape", [(20, 13), (13, 20)])
def test_blocks_change_nothing(shape: tuple[int, int], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = random_matrices(3, shape)
    whole = merged("wudi", matrices)
    monkeypatch.setattr(interference, "ROWS", rows)
    assert_close(merged("wudi", matrices), whole, 1e-6)
