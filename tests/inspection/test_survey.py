"""A whole inspection: what it holds, that its JSON is JSON, and that it follows the recipe."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspection_cases import NAME, NAMES, layer_of, opened, preflight_of
from tiny_checkpoints import change_weights

from sftm_app.errors import InputError
from sftm_app.inspection import survey as survey_module
from sftm_app.inspection.factors import LayerFactors, factorise_layer
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.measures import MEASURES
from sftm_app.inspection.pair import pair_angles
from sftm_app.inspection.survey import survey
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import merge_settings


def strict_json(text: str) -> Any:
    def no_constants(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=no_constants)


def test_a_survey_holds_every_layer_or_the_one_asked_for(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    whole, one = survey(found), survey(found, NAME.removesuffix(".weight"))
    assert [row.layer for row in whole.layers] == list(map_layers(found))
    assert [row.layer.name for row in one.layers] == [NAME]
    with pytest.raises(InputError, match=r"no layer 'nonsense'\. Layers are named like 'embeddings"):
        survey(found, "nonsense")


def test_the_json_is_the_whole_inspection(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    settings = merge_settings("sftm", {"variant": "readout", "rank": 4, "scaling": 0.9}, (1.0, 2.0, 1.0))
    content = strict_json(survey(found, NAME, settings).to_json())
    assert content["tasks"] == list(NAMES)
    assert content["settings"]["method"] == "sftm"
    assert content["settings"]["params"] == values_of(settings.params)
    assert content["settings"]["params"]["rank"] == 4 and content["settings"]["params"]["scaling"] == 0.9
    assert content["settings"]["weights"] == {"a": 1.0, "b": 2.0, "c": 1.0}
    (entry,) = content["layers"]
    assert (entry["name"], entry["row"], entry["column"]) == (NAME, "encoder.layer.1", "intermediate.dense")
    assert entry["shape"] == [24, 16] and entry["tasks"] == list(NAMES)

    what_if = WhatIf(factorise_layer(found, layer_of(found)))
    prediction = what_if.predict(settings)
    assert set(entry["measures"]) == set(MEASURES)
    for name, measure in MEASURES.items():
        value = measure.compute(what_if, settings)
        assert entry["measures"][name]["overall"] == pytest.approx(value.overall)
        assert entry["measures"][name]["tasks"] == pytest.approx(dict(zip(NAMES, value.tasks, strict=True)))
    assert [spectrum["task"] for spectrum in entry["spectra"]] == list(NAMES)
    assert len(entry["spectra"][0]["gains"]) == 16
    assert set(entry["spectra"][0]["ranks_for_energy"]) == {"0.9", "0.95", "0.99"}
    for kind in ("read", "write", "feature"):
        assert np.shape(entry[f"{kind}_overlap"]) == (3, 3)
    assert [angles["tasks"] for angles in entry["angles"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    expected = pair_angles(what_if.made, 0, 2)
    assert entry["angles"][1]["k"] == expected.k and entry["angles"][1]["read"] == pytest.approx(expected.read.tolist())
    said = entry["prediction"]
    assert said["readout_errors"] == pytest.approx(dict(zip(NAMES, prediction.readout_errors, strict=True)))
    assert said["mapping_errors"]["b"] > 0 and said["ranks"] == {"a": 4, "b": 4, "c": 4}
    assert said["norm"] == pytest.approx(prediction.norm) and said["n_dropped"] == 0 and said["conflicts"] == []
    (cut,) = [warning for warning in entry["warnings"] if warning["kind"] == "truncation"]
    assert cut["tasks"] == list(NAMES) and "(rank 4)" in cut["sentence"]


def test_without_settings_the_merge_is_sftm_with_the_tasks_weights(tiny_models: Path) -> None:
    made = survey(preflight_of(tiny_models), NAME)
    assert made.settings == merge_settings("sftm", {}, (1.0, 1.0, 1.0))


def test_json_is_json_even_for_a_base_of_zeros_and_a_task_without_a_change(models: Path) -> None:
    change_weights(models / "base" / "model.safetensors", lambda tensors: tensors[NAME].zero_())
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].zero_())
    for method in ("sftm", "average", "task_arithmetic", "ties"):
        params = {"variant": "readout"} if method == "sftm" else {}
        settings = merge_settings(method, params, (1.0, 1.0, 1.0))
        (entry,) = strict_json(survey(preflight_of(models), NAME, settings).to_json())["layers"]
        assert entry["measures"]["change"]["overall"] is None
        assert entry["spectra"][1]["gains"] == [] and entry["angles"][0]["k"] == 0
        assert {"unchanged", "base_zero"} <= {warning["kind"] for warning in entry["warnings"]}
        coefficients = entry["prediction"]["coefficients"]
        assert coefficients is None if method == "ties" else list(coefficients) == list(NAMES)
        assert len(entry["prediction"]["gains"]) == 16


def test_the_factors_of_one_layer_are_held_at_a_time(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[LayerFactors]] = []
    most = 0

    def watched(*given: Any) -> LayerFactors:
        nonlocal most
        made = factorise_layer(*given)
        held.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in held))
        return made

    monkeypatch.setattr(survey_module, "factorise_layer", watched)
    kept = survey(preflight_of(tiny_models))
    assert len(kept.layers) == len(held) == 13 and most <= 2


def test_fused_maps_are_shown_one_by_one_where_the_recipe_splits_them(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2Model

    from sftm_app.planning.recipe import make_recipe

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    for seed, name in enumerate(("base", "t")):
        torch.manual_seed(seed)
        GPT2Model(config).save_pretrained(tmp_path / name)
    found = opened(make_recipe(tmp_path / "base", [tmp_path / "t"]))
    whole, split = survey(found), survey(found, split_fused=True)
    assert [row.layer.shape for row in whole.layers if "c_attn" in row.layer.name] == [(24, 8)]
    assert [row.layer.shape for row in split.layers if "c_attn" in row.layer.name] == [(8, 8)] * 3
