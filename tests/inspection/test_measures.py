"""Every measure against its direct formula, overall and per task."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from inspection_cases import NAMES, direct, gaussian, layer_of, made_of, preflight_of

from sftm_app.inspection import stored, what_if
from sftm_app.inspection.factors import LayerFactors, factorise_layer
from sftm_app.inspection.layer import layer_detail
from sftm_app.inspection.measures import MEASURES, MeasureValue
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import MergeSettings, merge_settings

NEED_NO_A = ("change", "effective_rank", "rank_90", "read_overlap", "write_overlap")


def settings_of(made: LayerFactors, method: str = "sftm", **values: object) -> MergeSettings:
    plain = {"variant": "readout"} if method == "sftm" else {}
    return merge_settings(method, plain | values, (1.0,) * (max(made.layer.members) + 1))


def values_of(made: LayerFactors, method: str = "sftm", **values: object) -> dict[str, MeasureValue]:
    settings = settings_of(made, method, **values)
    return {name: measure.compute(WhatIf(made), settings) for name, measure in MEASURES.items()}


def test_measures_against_direct_formulas(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    made = factorise_layer(found, layer_of(found))
    base, parts = direct(tiny_models)
    values = values_of(made, rank=4, scaling=0.5)
    changes = [np.linalg.norm(s) / np.linalg.norm(base) for _, s, _ in parts]
    ranks, nineties = [], []
    for _, s, _ in parts:
        p = s / s.sum()
        ranks.append(math.exp(-(p * np.log(p)).sum()) / 16)
        nineties.append(int((np.cumsum(s**2) / (s**2).sum() < 0.9).sum()) + 1)
    for name, wanted in (("change", changes), ("effective_rank", ranks), ("rank_90", nineties)):
        np.testing.assert_allclose(values[name].tasks, wanted, rtol=1e-4, err_msg=name)
        assert values[name].overall == pytest.approx(np.mean(wanted), rel=1e-4)
    tables = {"read_overlap": np.zeros((3, 3)), "write_overlap": np.zeros((3, 3))}
    for i in range(3):
        for j in range(3):
            (U, s, Vh), (P, t, Qh) = parts[i], parts[j]
            p, q = s**2, t**2
            scale = np.linalg.norm(p) * np.linalg.norm(q)
            tables["read_overlap"][i, j] = p @ (Vh @ Qh.T) ** 2 @ q / scale
            tables["write_overlap"][i, j] = p @ (U.T @ P) ** 2 @ q / scale
    for name, table in tables.items():
        others = (table.sum(1) - 1) / 2
        np.testing.assert_allclose(values[name].tasks, others, rtol=1e-4, err_msg=name)
        assert values[name].overall == pytest.approx(others.mean(), rel=1e-4)
    detail = layer_detail(made, NAMES)
    for kind in ("read", "write"):
        pairs = getattr(detail, kind)[~torch.eye(3, dtype=torch.bool)]
        assert values[f"{kind}_overlap"].overall == pytest.approx(float(pairs.mean()), rel=1e-5), "one definition"


def test_measures_of_A_and_of_the_merge_against_direct_formulas(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    made = factorise_layer(found, layer_of(found))
    _, parts = direct(tiny_models)
    U, V = np.concatenate([p[0] for p in parts], 1), np.concatenate([p[2] for p in parts]).T
    s = np.concatenate([p[1] for p in parts])
    A = (U.T @ U) * (V.T @ V)
    kept = np.tile(np.arange(16) < 4, 3)
    values = values_of(made, rank=4, scaling=0.5)
    squares = (A - np.eye(48)) ** 2
    np.testing.assert_allclose(
        values["interference"].tasks, np.sqrt(squares.reshape(3, 16, 48).sum(2).mean(1)), rtol=1e-3
    )
    assert values["interference"].overall == pytest.approx(np.sqrt(squares.sum() / 48), rel=1e-3)
    spectrum = np.linalg.eigvalsh(A[np.ix_(kept, kept)])
    assert values["condition"].overall == pytest.approx(spectrum[-1] / spectrum[0], rel=0.3)
    assert values["condition"].tasks == (values["condition"].overall,) * 3
    a = np.linalg.solve(A[np.ix_(kept, kept)], s[kept])
    D = 0.5 * (U[:, kept] * a) @ V[:, kept].T
    readout = [np.linalg.norm(((u.T @ D) * vh).sum(1) - g) / np.linalg.norm(g) for u, g, vh in parts]
    mapping = [np.linalg.norm(D @ vh.T - u * g) / np.linalg.norm(g) for u, g, vh in parts]
    for name, wanted in (("readout_error", readout), ("mapping_error", mapping)):
        assert_close(values[name].tasks, wanted, 2e-3, what=name)
        assert values[name].overall == pytest.approx(np.mean(wanted), abs=2e-3)


def test_measures_at_their_ends() -> None:
    one, other, zero = torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3)
    one[0, 0], other[1, 1] = 2.0, 5.0
    same, apart, none = (values_of(made_of(*pair)) for pair in ((one, one), (one, other), (zero, zero)))
    assert same["read_overlap"].overall == pytest.approx(1) and same["write_overlap"].overall == pytest.approx(1)
    assert apart["read_overlap"].overall == 0 and apart["write_overlap"].overall == 0
    assert apart["change"] == MeasureValue(3.5, (2.0, 5.0))
    assert same["effective_rank"].overall == pytest.approx(1 / 3)
    assert same["rank_90"] == MeasureValue(1.0, (1.0, 1.0))
    assert same["interference"].overall == pytest.approx(1) and apart["interference"].overall == 0
    assert apart["condition"].overall == pytest.approx(1)
    assert apart["mapping_error"].overall == pytest.approx(0, abs=1e-6)
    assert {name: value.overall for name, value in none.items()} == dict.fromkeys(MEASURES, 0.0) | {"condition": 1.0}
    single = values_of(made_of(one))
    assert single["read_overlap"] == MeasureValue(0.0, (0.0,))
    assert single["interference"] == MeasureValue(0.0, (0.0,))
    assert values_of(made_of(one, base_norm=0.0))["change"] == MeasureValue(math.inf, (math.inf,))


def test_every_measure_says_what_it_is() -> None:
    assert list(MEASURES) == [*NEED_NO_A, "interference", "condition", "readout_error", "mapping_error"]
    for name, measure in MEASURES.items():
        assert measure.name == name and measure.title and measure.help.endswith(".")
        assert measure.of_method == (name in ("condition", "readout_error", "mapping_error"))
        assert measure.log == (name in ("change", "condition"))


def test_only_measures_of_A_and_of_the_merge_form_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_of(gaussian(6, 5, 1), gaussian(6, 5, 2))
    settings = settings_of(made)

    def refuse(*args: object) -> None:
        raise AssertionError("A was formed")

    monkeypatch.setattr(stored, "FeatureGram", refuse)
    for name in NEED_NO_A:
        MEASURES[name].compute(WhatIf(made), settings)
    with pytest.raises(AssertionError, match="A was formed"):
        MEASURES["readout_error"].compute(WhatIf(made), settings)
    monkeypatch.setattr(what_if, "StoredAnswers", refuse)
    for name in MEASURES:
        value = MEASURES[name].compute(WhatIf(made, stored=False), settings)
        assert len(value.tasks) == 2


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_methods_without_a_rank_have_the_condition_of_all_features(method: str) -> None:
    made = made_of(gaussian(6, 5, 1), gaussian(6, 5, 2))
    assert values_of(made, method)["condition"].overall == values_of(made, rank=None)["condition"].overall > 1.0
