"""Two tasks' features and the angles between their spaces against direct formulas and random draws."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from inspection_cases import NAMES, direct, gaussian, layer_of, made_of, orthogonal, preflight_of, with_features

from sftm_app.errors import InputError
from sftm_app.inspection.factors import LayerFactors, factorise_layer
from sftm_app.inspection.layers import MapLayer
from sftm_app.inspection.pair import pair_angles, pair_detail
from sftm_app.linalg.factors import Factors


def test_pair_detail_against_direct_svd(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    pair = pair_detail(factorise_layer(found, layer_of(found)), NAMES, 0, 2, k=3)
    _, parts = direct(tiny_models)
    (U, _, Vh), (P, _, Qh) = parts[0], parts[2]
    assert (pair.name, pair.first, pair.second, pair.angles.k) == (layer_of(found).name, "a", "c", 3)
    assert_close(pair.read, np.abs(Vh @ Qh.T), 2e-3)
    assert_close(pair.write, np.abs(U.T @ P), 2e-3)
    # A of a pair of features: <u v^T, p q^T>, up to the sign of either.
    entries = np.einsum("mk,kn,ml,ln->kl", U, Vh, P, Qh)
    assert_close(pair.both.abs(), np.abs(entries), 2e-3)
    for angles, A, B in ((pair.angles.read, Vh[:3].T, Qh[:3].T), (pair.angles.write, U[:, :3], P[:, :3])):
        cosines = np.linalg.svd(A.T @ B, compute_uv=False)
        assert_close(angles, np.degrees(np.arccos(cosines)), 5e-4, scale=90)


def test_entries_of_A_keep_their_sign() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    pair = pair_detail(made_of(with_features(U, [2.0, 1.0], V), with_features(U, [-3.0, 1.0], V)), NAMES, 0, 1)
    assert_close(pair.both, torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    assert_close(pair.read, torch.eye(2))
    assert float(pair.angles.read.max()) < 0.01 and float(pair.angles.write.max()) < 0.01


def test_levels_of_random_directions_are_those_of_random_draws() -> None:
    pair = pair_detail(made_of(gaussian(12, 30, 1), gaussian(12, 30, 2)), NAMES, 0, 1)
    rng = np.random.default_rng(0)

    def cosines(dim: int) -> np.ndarray:
        x, y = rng.standard_normal((2, 20000, dim))
        return np.abs((x * y).sum(1)) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)

    read, write = cosines(30), cosines(12)
    assert pair.random_read == pytest.approx(read.mean(), rel=0.03)
    assert pair.random_write == pytest.approx(write.mean(), rel=0.03)
    assert pair.random_both == pytest.approx((read * write).mean(), rel=0.03)


def test_random_tasks_show_the_angles_of_random_spaces() -> None:
    pair = pair_detail(made_of(gaussian(150, 100, 1), gaussian(150, 100, 2)), NAMES, 0, 1, k=20)
    assert float((pair.angles.read - pair.angles.random_read).abs().max()) < 8
    assert float((pair.angles.write - pair.angles.random_write).abs().max()) < 8
    assert float(pair.angles.random_write[0]) > float(pair.angles.random_read[0]), "more room, larger angles"


def test_k_is_what_the_smaller_takes_for_90_percent_unless_given() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    made = made_of(with_features(U, [3.0, 3.1, 1.0], V), with_features(U, [1.0, 1.1, 1.2, 1.3], V), torch.zeros(6, 5))
    angles = pair_angles(made, 0, 1)
    assert angles.k == 2
    assert angles.read.shape == angles.write.shape == angles.random_read.shape == angles.random_write.shape == (2,)
    assert bool((angles.read.diff() >= 0).all())
    assert pair_angles(made, 0, 1, k=4).k == 3, "no more than both have"
    assert pair_angles(made, 0, 2).k == 0 and pair_angles(made, 0, 2).read.shape == (0,)
    assert pair_detail(made, NAMES, 0, 2).both.shape == (3, 0)


@pytest.mark.parametrize(("first", "second", "k"), [(0, 2, None), (-1, 0, None), (0, 1, 0)])
def test_what_does_not_exist_is_refused(first: int, second: int, k: int | None) -> None:
    with pytest.raises(InputError, match=r"x\.weight: "):
        pair_detail(made_of(torch.eye(3), torch.eye(3)), NAMES, first, second, k)


def test_names_follow_the_members_of_the_layer() -> None:
    pair = pair_detail(made_of(torch.eye(3), torch.eye(3), members=(0, 2)), NAMES, 0, 1)
    assert (pair.first, pair.second) == ("a", "c")


def test_angles_of_a_large_layer_take_milliseconds() -> None:
    factors = []
    for seed in range(2):
        U, V = (torch.linalg.qr(gaussian(768, 64, 2 * seed + side))[0] for side in range(2))
        factors.append(Factors(U, torch.ones(64), V.T, ""))
    layer = MapLayer("x", "outside", "x", (768, 768), "x", made_of(torch.eye(2)).layer.part, (0, 1))
    made = LayerFactors(layer, 1.0, tuple(factors), lambda: torch.zeros(768, 768))
    best = min(_timed(made) for _ in range(5))
    assert best < 0.1, "20 ms on an idle machine"


def _timed(made: LayerFactors) -> float:
    started = time.perf_counter()
    pair_angles(made, 0, 1, k=64)
    return time.perf_counter() - started
