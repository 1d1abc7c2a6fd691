"""TSV-M, Iso-C, Iso-CTS and CART against the papers' equations, in float64 and by SVDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from spectral_oracles import Array, cart, iso_c, iso_cts, tsv_m
from torch import Tensor

from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.methods import METHODS
from sftm_app.methods.base import Merged, Method

Directly = Callable[..., Array]

SHAPES = [(20, 13), (13, 20), (16, 16), (3, 90), (90, 70), (1, 8), (8, 1), (2, 2)]


CASES: list[tuple[str, dict[str, Any], Directly]] = [
    ("tsv_m", {}, tsv_m),
    ("tsv_m", {"share": 0.5}, tsv_m),
    ("iso_c", {}, iso_c),
    ("iso_cts", {}, iso_cts),
    ("iso_cts", {"common": 0.3}, iso_cts),
    ("cart", {}, cart),
    ("cart", {"rank": 3, "coefficient": 0.7}, cart),
]
EACH = pytest.mark.parametrize(("name", "values", "directly"), CASES, ids=[f"{c[0]}{c[1] or ''}" for c in CASES])


def merged(method: Method, values: dict[str, Any], matrices: Sequence[Delta], weights: Sequence[float] = ()) -> Tensor:
    layer = layer_of(matrices, weights or [1.0] * len(matrices))
    return delta_of(method.merge(layer, method.params(**values)))


def arrays(matrices: Sequence[Delta]) -> list[Array]:
    return [dense(D).double().numpy() for D in matrices]


@EACH
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_matrices(
    name: str, values: dict[str, Any], directly: Directly, shape: tuple[int, int], weights: list[float]
) -> None:
    matrices = random_matrices(3, shape)
    found = merged(METHODS[name], values, matrices, weights)
    assert_close(found, torch.tensor(directly(arrays(matrices), weights, **values)), 2e-5)


@EACH
def test_matrices_whose_gains_fall(name: str, values: dict[str, Any], directly: Directly) -> None:
    """As fine-tunes have them: a shared part, and gains that fall over three decades."""
    shared, *own = random_matrices(4, (120, 80))
    decay = torch.logspace(0, -3, 80)
    matrices = [torch.linalg.qr(D).Q * decay @ torch.linalg.qr(own[0].T @ D).Q for D in own]
    matrices = [D + 0.3 * torch.linalg.qr(shared).Q[:, :10] @ torch.randn(10, 80).mul_(0.1) for D in matrices]
    found = merged(METHODS[name], values, matrices)
    assert_close(found, torch.tensor(directly(arrays(matrices), [1.0] * 3, **values)), 1e-4)


@EACH
def test_lora_pairs_stay_thin_and_give_what_their_products_give(
    name: str, values: dict[str, Any], directly: Directly
) -> None:
    pairs = [low_rank((60, 40), rank, seed) for seed, rank in enumerate((2, 3, 5))]
    weights = [1.0, 0.5, 2.0]
    method = METHODS[name]
    result = method.merge(layer_of(pairs, weights), method.params(**values))
    delta = result.delta if isinstance(result, Merged) else result
    assert isinstance(delta, LowRank) and delta.rank <= 10
    assert_close(dense(delta), torch.tensor(directly(arrays(pairs), weights, **values)), 1e-4)
    mixed = [dense(pairs[0]), *pairs[1:]]
    assert_close(merged(method, values, mixed, weights), dense(delta), 1e-4)


@EACH
def test_what_rotates_the_tasks_rotates_the_merge(name: str, values: dict[str, Any], directly: Directly) -> None:
    matrices = random_matrices(3, (20, 13))
    P, Q = (
        torch.linalg.qr(square).Q for square in (*random_matrices(1, (20, 20), 7), *random_matrices(1, (13, 13), 8))
    )
    turned = merged(METHODS[name], values, [P @ D @ Q for D in matrices])
    assert_close(turned, P @ merged(METHODS[name], values, matrices) @ Q, 5e-5)


@EACH
def test_what_scales_the_tasks_scales_the_merge(name: str, values: dict[str, Any], directly: Directly) -> None:
    matrices = random_matrices(3, (20, 13))
    one = merged(METHODS[name], values, matrices)
    for factor in (1e-6, 3.0):
        assert_close(merged(METHODS[name], values, [D * factor for D in matrices]), one * factor, 2e-5)


def test_tsv_of_one_task_is_the_task() -> None:
    for shape in SHAPES:
        (D,) = random_matrices(1, shape)
        assert_close(merged(METHODS["tsv_m"], {}, [D]), D, 1e-5)
        assert_close(merged(METHODS["tsv_m"], {}, [D], [0.5]), D / 2, 1e-5)


@pytest.mark.parametrize("n_tasks", [2, 5])
def test_tsv_counts_copies_of_a_task_once(n_tasks: int) -> None:
    """Up to the features that 1/T of the rank leaves out."""
    (D,) = random_matrices(1, (20, 15))
    U, s, Vh = np.linalg.svd(D.double().numpy())
    count = 15 // n_tasks
    wanted = (U[:, :count] * s[:count]) @ Vh[:count]
    assert_close(merged(METHODS["tsv_m"], {}, [D] * n_tasks), torch.tensor(wanted), 2e-5)


def test_tsv_adds_up_tasks_that_share_no_direction() -> None:
    U, V = (torch.linalg.qr(square).Q for square in random_matrices(2, (12, 12)))
    parts = [U[:, a : a + 4] * torch.tensor([4.0, 3.0, 2.0, 1.0]) @ V[:, a : a + 4].T for a in (0, 4, 8)]
    assert_close(merged(METHODS["tsv_m"], {}, parts), sum(parts, torch.zeros(12, 12)), 1e-5)


def test_tsv_s_directions_are_orthonormal() -> None:
    """So its singular values are the gains kept."""
    matrices = random_matrices(3, (30, 24))
    found = torch.linalg.svdvals(merged(METHODS["tsv_m"], {}, matrices))
    kept = torch.cat([torch.linalg.svdvals(D)[:8] for D in matrices]).sort(descending=True).values
    assert_close(found, kept, 1e-5)


def test_iso_s_singular_values_are_all_the_mean_of_the_sum_s() -> None:
    matrices = random_matrices(3, (30, 24))
    found = torch.linalg.svdvals(merged(METHODS["iso_c"], {}, matrices))
    mean = torch.linalg.svdvals(sum(matrices, torch.zeros(30, 24))).mean()
    assert_close(found, mean.expand(24), 1e-5)


def test_iso_leaves_out_directions_that_no_task_has() -> None:
    """An input that is always zero stays zero, where an SVD library would write on it."""
    matrices = random_matrices(3, (30, 24))
    for D in matrices:
        D[:, 5] = 0
    found = merged(METHODS["iso_c"], {}, matrices)
    assert float(found[:, 5].abs().max()) < 1e-6 * float(found.abs().max())


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts_has_one_singular_value(common: float) -> None:
    for n_tasks in (2, 3, 7, 30):
        matrices = random_matrices(n_tasks, (30, 24))
        found = torch.linalg.svdvals(merged(METHODS["iso_cts"], {"common": common}, matrices))
        assert_close(found, found.mean().expand(24), 1e-5)
        wanted = torch.tensor(iso_cts(arrays(matrices), [1.0] * n_tasks, common))
        assert_close(merged(METHODS["iso_cts"], {"common": common}, matrices), wanted, 5e-5)


def test_iso_cts_of_one_task_or_with_all_common_is_iso_c() -> None:
    matrices = random_matrices(3, (20, 13))
    assert_close(merged(METHODS["iso_cts"], {"common": 1.0}, matrices), merged(METHODS["iso_c"], {}, matrices), 1e-5)
    assert_close(merged(METHODS["iso_cts"], {}, matrices[:1]), merged(METHODS["iso_c"], {}, matrices[:1]), 1e-5)


def test_iso_cts_of_copies_takes_no_rounding_for_a_direction() -> None:
    """All of a copy's rest is in the same directions, and what lies outside them is rounding."""
    (D,) = random_matrices(1, (40, 30))
    found = torch.linalg.svdvals(merged(METHODS["iso_cts"], {"common": 0.8}, [D, D, D]))
    assert_close(found[:26], found[0].expand(26), 1e-5)
    assert float(found[26:].max()) < 1e-5 * float(found[0])


def test_cart_of_one_task_is_the_task_and_at_full_rank_the_average() -> None:
    matrices = random_matrices(3, (20, 13))
    assert_close(merged(METHODS["cart"], {}, matrices[:1]), matrices[0], 1e-6)
    for coefficient in (0.0, 2.0):
        found = merged(METHODS["cart"], {"rank": None, "coefficient": coefficient}, matrices)
        assert_close(found, sum(matrices, torch.zeros(20, 13)) / 3, 1e-5)


def test_cart_by_a_share_of_the_energy() -> None:
    """Each difference has its own count."""
    matrices = random_matrices(2, (20, 13))
    average = (matrices[0] + matrices[1]) / 2
    energies = torch.linalg.svdvals(matrices[0] - average).square()
    count = int((energies.cumsum(0) / energies.sum() < 0.6).sum()) + 1
    found = merged(METHODS["cart"], {"rank": "60% energy"}, matrices)
    assert_close(found, merged(METHODS["cart"], {"rank": count}, matrices), 1e-6)


@pytest.mark.parametrize("thin", [False, True])
def test_cart_counts_adapters_that_leave_a_layer_as_it_is(thin: bool) -> None:
    given: list[Delta] = [low_rank((20, 13), rank, rank) for rank in (2, 4)]
    given = given if thin else [dense(D) for D in given]
    method = METHODS["cart"]
    found = delta_of(method.merge(layer_of(given, [1.0, 2.0], idle=3.0), method.params(rank=2)))
    assert_close(found, torch.tensor(cart(arrays(given), [1.0, 2.0], rank=2, idle=3.0)), 5e-5)


def test_opposed_tasks_cancel_in_iso() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert not merged(METHODS["iso_c"], {}, [D, -D]).any()


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "cart"])
def test_more_tasks_than_rank(name: str) -> None:
    matrices = random_matrices(5, (3, 7))
    directly: Directly = {"tsv_m": tsv_m, "iso_c": iso_c, "iso_cts": iso_cts, "cart": cart}[name]
    assert_close(merged(METHODS[name], {}, matrices), torch.tensor(directly(arrays(matrices), [1.0] * 5)), 2e-5)


def test_threads_change_nothing() -> None:
    matrices = random_matrices(4, (90, 70))
    for name, values, _ in CASES:
        method = METHODS[name]
        one, two = (
            delta_of(method.merge(replace(layer_of(matrices), n_threads=n, n_at_once=n), method.params(**values)))
            for n in (1, 2)
        )
        assert_close(two, one, 1e-6)
