"""A layer's spectra, clusters and overlaps against direct formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from inspection_cases import NAME, NAMES, direct, layer_of, made_of, orthogonal, preflight_of, with_features

from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layer import CLUSTER_SENTENCE, layer_detail


def test_layer_detail_against_direct_svd(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    detail = layer_detail(factorise_layer(found, layer_of(found)), NAMES)
    base, parts = direct(tiny_models)
    assert (detail.name, detail.shape) == (NAME, (24, 16))
    projectors = {"read": [], "write": []}
    for spectrum, task, (U, s, Vh) in zip(detail.spectra, NAMES, parts, strict=True):
        assert spectrum.task == task
        np.testing.assert_allclose(spectrum.gains, s, rtol=1e-4)
        assert spectrum.relative_change == pytest.approx(np.linalg.norm(s) / np.linalg.norm(base), rel=1e-5)
        assert spectrum.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
        energy = np.cumsum(s**2) / (s**2).sum()
        assert spectrum.ranks_for_energy == {e: int((energy < e).sum()) + 1 for e in (0.90, 0.95, 0.99)}
        D = (U * s) @ Vh
        projectors["read"].append(D.T @ D)
        projectors["write"].append(D @ D.T)
    for kind in ("read", "write"):
        found_overlap = getattr(detail, kind).numpy()
        wanted = [
            [(p * q).sum() / (np.linalg.norm(p) * np.linalg.norm(q)) for q in projectors[kind]]
            for p in projectors[kind]
        ]
        assert_close(found_overlap, wanted)
        assert np.allclose(np.diag(found_overlap), 1)


def test_the_overview_of_whole_features_against_direct_svd(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    detail = layer_detail(factorise_layer(found, layer_of(found)), NAMES)
    _, parts = direct(tiny_models)
    # The projectors onto the features themselves, as vectors of m n numbers.
    projectors = []
    for U, s, Vh in parts:
        vectors = np.stack([np.outer(U[:, k], Vh[k]).ravel() * s[k] for k in range(len(s))])
        projectors.append(vectors.T @ vectors)
    wanted = [[(P * Q).sum() / (np.linalg.norm(P) * np.linalg.norm(Q)) for Q in projectors] for P in projectors]
    assert_close(detail.both, wanted)
    assert bool((detail.both <= torch.minimum(detail.read, detail.write) + 1e-6).all())


def test_a_shared_read_direction_alone_is_no_shared_feature() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    detail = layer_detail(made_of(with_features(U, [2.0], V), -with_features(U[:, 1:], [3.0], V)), NAMES)
    assert_close(detail.read, torch.ones(2, 2))
    assert_close(detail.write, torch.eye(2))
    assert_close(detail.both, torch.eye(2))
    opposed = layer_detail(made_of(with_features(U, [2.0, 1.0], V), -with_features(U, [4.0, 2.0], V)), NAMES)
    assert float(opposed.both[0, 1]) == pytest.approx(1, abs=1e-5), "the sign does not matter"


def test_clusters_of_each_task_are_marked_and_explained() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    made = made_of(with_features(U, [3.0, 2.999, 1.0], V), with_features(U, [3.0, 2.0, 1.0], V))
    assert [spectrum.clusters for spectrum in layer_detail(made, NAMES).spectra] == [((0, 2),), ()]
    assert CLUSTER_SENTENCE.endswith(".") and "nearly equal" in CLUSTER_SENTENCE


def test_names_follow_the_members_of_the_layer() -> None:
    made = made_of(torch.eye(3), torch.eye(3), members=(0, 2))
    assert [spectrum.task for spectrum in layer_detail(made, NAMES).spectra] == ["a", "c"]


def test_a_task_without_a_change_has_no_features() -> None:
    detail = layer_detail(made_of(torch.zeros(3, 2), torch.eye(3)[:, :2]), NAMES)
    assert detail.spectra[0].gains == ()
    assert detail.spectra[0].ranks_for_energy == {0.90: 0, 0.95: 0, 0.99: 0}
    assert detail.read[0].tolist() == [0.0, 0.0]
    assert detail.both[0].tolist() == [0.0, 0.0] and detail.spectra[0].clusters == ()
