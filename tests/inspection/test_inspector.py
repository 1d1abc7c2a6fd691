"""What is kept about layers: the same objects again, within limits, never stale, under many threads."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from closeness import assert_close
from inspection_cases import NAME, layer_of, opened, preflight_of
from tiny_adapters import build, save_adapter
from tiny_checkpoints import change_weights

from sftm_app.engine import features as features_module
from sftm_app.errors import CheckpointError
from sftm_app.inspection import inspector as inspector_module
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.inspector import Inspector
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.measures import MEASURES
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import merge_settings
from sftm_app.planning.recipe import make_recipe
from sftm_app.weights import disk_cache
from sftm_app.weights.disk_cache import DiskCache

SETTINGS = merge_settings("sftm", {}, (1.0, 1.0, 1.0))


def test_the_same_object_is_given_again_and_limits_are_kept(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    layers = map_layers(found)[1:5]
    size = factorise_layer(found, layers[0]).n_bytes
    inspector = Inspector(limit_bytes=2 * size + 1)
    first = inspector.factors(found, layers[0])
    assert inspector.factors(found, layers[0]) is first
    second = inspector.factors(found, layers[1])
    assert inspector.factors(found, layers[0]) is first  # looked at last, so it stays
    inspector.factors(found, layers[2])
    assert inspector.factors(found, layers[0]) is first
    assert inspector.factors(found, layers[1]) is not second
    tiny = Inspector(limit_bytes=1, what_if_limit_bytes=1)
    assert tiny.factors(found, layers[0]).layer is layers[0]  # too large to be cached, but returned
    assert tiny.what_if(found, layers[0]).made.layer is layers[0]


def test_a_layers_detail_is_made_once_for_these_names(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    inspector, layer = Inspector(), map_layers(found)[1]
    first = inspector.detail(found, layer)
    assert inspector.detail(found, layer) is first and [s.task for s in first.spectra] == ["a", "b", "c"]
    renamed = dataclasses.replace(
        found, tasks=tuple(dataclasses.replace(task, name=task.name * 2) for task in found.tasks)
    )
    assert [s.task for s in inspector.detail(renamed, layer).spectra] == ["aa", "bb", "cc"]


def test_what_ifs_are_kept_up_to_what_they_may_come_to_hold(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    layers = map_layers(found)[1:5]
    size = WhatIf(factorise_layer(found, layers[0])).n_bytes
    inspector = Inspector(what_if_limit_bytes=2 * size + 1)
    first, second = (inspector.what_if(found, layer) for layer in layers[:2])
    assert inspector.what_if(found, layers[0]) is first
    assert first.made is inspector.factors(found, layers[0])
    inspector.what_if(found, layers[2])
    assert inspector.what_if(found, layers[0]) is first
    assert inspector.what_if(found, layers[1]) is not second


def test_a_changed_file_is_computed_again(models: Path) -> None:
    inspector, found = Inspector(), preflight_of(models)
    layer = layer_of(found)
    before, value = inspector.what_if(found, layer), inspector.value(found, layer, "change", SETTINGS)
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].mul_(2))
    again = preflight_of(models)
    after = inspector.what_if(again, layer_of(again))
    assert after is not before and after.made is not before.made
    assert not torch.equal(after.made.factors[1].S, before.made.factors[1].S)
    assert_close(after.made.factors[0].S, before.made.factors[0].S)
    assert inspector.value(again, layer_of(again), "change", SETTINGS) != value
    with pytest.raises(CheckpointError, match="was changed while in use"):
        Inspector().factors(found, layer)


def test_factors_are_found_on_disk_by_another_process_and_only_for_the_same_contents(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "MIN_SIDE", 2)
    cache = DiskCache(tmp_path / "factors", 10_000_000)
    found = preflight_of(models)
    layers = map_layers(found)
    fresh = [Inspector().factors(found, layer) for layer in layers]
    first = [Inspector(cache=cache).factors(found, layer) for layer in layers]
    assert cache.use().n_entries == sum(len(layer.members) for layer in layers)

    def refuse(*args: object) -> None:
        raise AssertionError("factorised again")

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "factorise", refuse)
        again = [
            Inspector(cache=DiskCache(cache.folder, 10_000_000), n_threads=2).factors(found, layer) for layer in layers
        ]
    for made, kept, wanted in zip(first, again, fresh, strict=True):
        for one, other, exact in zip(made.factors, kept.factors, wanted.factors, strict=True):
            assert all(torch.equal(getattr(one, name), getattr(exact, name)) for name in ("U", "S", "Vh"))
            assert all(torch.equal(getattr(other, name), getattr(exact, name)) for name in ("U", "S", "Vh"))
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].mul_(2))
    changed = preflight_of(models)
    after = Inspector(cache=cache).factors(changed, layer_of(changed)).factors
    assert [f.how.endswith(", cached") for f in after] == [True, False, True]


def test_values_are_those_of_the_measures_and_outlive_the_factors(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = preflight_of(tiny_models)
    layer = layer_of(found)
    inspector = Inspector(limit_bytes=1, what_if_limit_bytes=1)
    values = {name: inspector.value(found, layer, name, SETTINGS) for name in MEASURES}
    for name, measure in MEASURES.items():
        wanted = measure.compute(WhatIf(factorise_layer(found, layer)), SETTINGS)
        assert values[name].overall == pytest.approx(wanted.overall, abs=1e-3, rel=0.3 if name == "condition" else 1e-3)

    def refuse(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(inspector_module, "WhatIf", refuse)
    assert {name: inspector.value(found, layer, name, SETTINGS) for name in MEASURES} == values


def test_values_follow_only_the_settings_that_they_depend_on(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = preflight_of(tiny_models)
    layer, inspector, asked = layer_of(found), Inspector(), []
    measures = {
        name: dataclasses.replace(
            measure, compute=lambda what_if, settings, measure=measure: asked.append(measure.name)
            or measure.compute(what_if, settings)
        )
        for name, measure in MEASURES.items()
    }  # fmt: skip
    monkeypatch.setattr(inspector_module, "MEASURES", measures)
    for values in ({}, {"scaling": 0.5}, {"scaling": 0.5, "rank": 3}, {"rank": "90% energy"}):
        for weights in ((1, 1, 1), (1, 2, 1)):
            for name in MEASURES:
                inspector.value(found, layer, name, merge_settings("sftm", values, weights))
    counts = {name: asked.count(name) for name in MEASURES}
    assert counts == dict.fromkeys(MEASURES, 1) | {"condition": 3, "readout_error": 8, "mapping_error": 8}


def test_a_map_does_not_push_out_the_layer_that_is_looked_at(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    layers = map_layers(found)
    inspector = Inspector(what_if_limit_bytes=WhatIf(factorise_layer(found, layers[1])).n_bytes + 1)
    looked_at = inspector.what_if(found, layers[1])
    for layer in layers:
        inspector.value(found, layer, "readout_error", SETTINGS)
    assert inspector.what_if(found, layers[1]) is looked_at


def test_many_threads_get_one_object(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    layers = map_layers(found)
    small, inspector = Inspector(limit_bytes=20_000, what_if_limit_bytes=20_000), Inspector()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: small.factors(found, layers[i % len(layers)]), range(40)))
        kept = list(pool.map(lambda i: inspector.what_if(found, layers[i % 2]), range(40)))
        values = list(pool.map(lambda i: small.value(found, layers[i % 3], "mapping_error", SETTINGS), range(30)))
    assert all(one.layer is layers[i % len(layers)] for i, one in enumerate(made))
    assert len({id(one) for one in kept}) == 2
    assert len({(i % 3, value) for i, value in enumerate(values)}) == 3


def test_idle_adapters_are_known_and_members_are_those_of_the_workspace(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    both = save_adapter(tmp_path / "both", "llama", 1)
    one = save_adapter(tmp_path / "one", "llama", 2, target_modules=["q_proj"])
    other = save_adapter(tmp_path / "other", "llama", 3)
    inspector = Inspector()

    def layer_in(*folders: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        found = opened(make_recipe(tmp_path / "base", list(folders)))
        layer = next(layer for layer in map_layers(found) if "down_proj" in layer.name)
        made = inspector.factors(found, layer)
        return made.layer.members, made.idle

    assert layer_in(both, other) == ((0, 1), ())
    assert layer_in(both, one, other) == ((0, 2), (1,))  # the same files are read, but their tasks have other numbers
    assert layer_in(one, both, other) == ((1, 2), (0,))
