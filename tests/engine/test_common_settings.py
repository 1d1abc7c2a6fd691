"""Settings that every method has, against direct formulas on the uncalibrated, unscaled merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file
from tiny_adapters import build, save_adapter
from torch import Tensor

from sftm_app.api import inspect, merge
from sftm_app.engine import layer as layer_module
from sftm_app.engine.run import run, run_deltas
from sftm_app.linalg.low_rank import LowRank, dense
from sftm_app.methods import METHODS
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session

Tensors = dict[str, Tensor]
BLOCK = "encoder.layer.{}."
WEIGHTS = (1.0, 0.5, 2.0)
# Two methods of each way through the engine: element by element, from features, from whole matrices.
METHOD_NAMES = ("average", "task_arithmetic", "sftm", "ties")


def backbone(folder: Path) -> Tensors:
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix("vit."): t.double() for name, t in tensors.items() if not name.startswith("classifier")}


@pytest.fixture
def changes(tiny_models: Path, session: Session) -> Callable[..., Tensors]:
    """What a merge of the tiny models adds to every tensor."""
    base = backbone(tiny_models / "base")
    tasks = [{"path": tiny_models / t, "weight": w} for t, w in zip("abc", WEIGHTS, strict=True)]

    def merged(method: str, **params: Any) -> Tensors:
        plan = prepare(make_recipe(tiny_models / "base", tasks, method, params, device="cpu"), session)
        return {step.entry.name: step.tensor.double() - base[step.entry.name] for step in run(plan, session)}

    return merged


def calibrated(D: Tensor, matrices: list[Tensor], wanted: list[float], strength: float) -> Tensor:
    """The formula of SVC with a mean by energy, direction by direction, in float64."""
    P, sigma, Qh = torch.linalg.svd(D, full_matrices=False)
    for r in range(len(sigma)):
        own = [w * P[:, r] @ M for w, M in zip(wanted, matrices, strict=True)]
        energies = [float(o @ o) for o in own]
        sums = [max(energy, float((P[:, r] @ D) @ o)) for energy, o in zip(energies, own, strict=True)]
        sigma[r] /= (sum(sums) / sum(energies)) ** strength
    return (P * sigma) @ Qh


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_calibration_is_that_of_the_methods_own_delta(
    changes: Callable[..., Tensors], tiny_models: Path, method: str
) -> None:
    if "calibration" in METHODS[method].params().unused():
        pytest.skip("its singular values are equal, so it has no directions of its own")
    at = {"scaling": 1.0} if method != "average" else {}
    plain, found = changes(method, calibration=0.0, **at), changes(method, calibration=0.5, **at)
    base, tasks = backbone(tiny_models / "base"), [backbone(tiny_models / t) for t in "abc"]
    weights = [1.0] * 3 if METHODS[method].weights_are_shares else list(WEIGHTS)
    moved = 0.0
    for name, D in plain.items():
        if name.endswith(".weight") and "norm" not in name:
            matrices = [(task[name] - base[name]).flatten(1) for task in tasks]
            wanted = calibrated(D.flatten(1), matrices, weights, 0.5)
            moved = max(moved, float((wanted - D.flatten(1)).norm() / D.norm()))
            assert_close(found[name].flatten(1), wanted, 2e-4, what=name)
        else:
            assert torch.equal(found[name], D), "only linear maps are calibrated"
    assert moved > 0.02 or method == "average", "a mean of tasks that share little adds nothing up"


def test_calibration_comes_before_the_scaling(changes: Callable[..., Tensors]) -> None:
    for method in ("task_arithmetic", "sftm"):
        one, small = (changes(method, calibration=1.0, scaling=scaling) for scaling in (1.0, 0.2))
        name = BLOCK.format(1) + "intermediate.dense.weight"
        assert_close(small[name], 0.2 * one[name], 1e-4)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_depth_scales_every_tensor_by_its_block(changes: Callable[..., Tensors], method: str) -> None:
    plain, found = changes(method), changes(method, depth=0.25)
    assert len(plain) > 30
    for name, D in plain.items():
        share = 1.0 if name.startswith(BLOCK.format(1)) else 0.25
        assert_close(found[name], share * D, 1e-4, scale=max(float(D.abs().max()), 1e-3), what=name)


def test_task_arithmetic_scales_each_kind_of_submodule(changes: Callable[..., Tensors]) -> None:
    plain, found = changes("task_arithmetic"), changes("task_arithmetic", attention=0.5, mlp=2.0, other=0.0)
    for name, D in plain.items():
        attention = ".attention." in name
        factor = 0.5 if attention else 2.0 if ".dense." in name and "pooler" not in name else 0.0
        assert_close(found[name], factor * D, 1e-4, scale=max(float(D.abs().max()), 1e-3), what=name)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sftm", {"calibration": 1.0, "depth": 0.5, "rank": 5}),
    ("task_arithmetic", {"calibration": 0.5, "scaling": 1.0}),
    ("task_arithmetic", {"attention": 0.5, "mlp": 2.0, "depth": 0.5, "scaling": 1.0}),
    ("ties", {"calibration": 1.0, "depth": 0.5}),
]


@pytest.mark.parametrize(("method", "params"), SETTINGS)
def test_inspect_predicts_what_the_merge_then_does(
    tiny_models: Path, tmp_path: Path, method: str, params: dict[str, Any]
) -> None:
    tasks = [tiny_models / name for name in "abc"]
    report = merge(tiny_models / "base", tasks, tmp_path / "out", method, "cpu", **params)
    merged = {record.name: record.figures for record in report.tensors}
    found = inspect(tiny_models / "base", tasks, method=method, **params)
    assert len(found.layers) == 13
    for one in found.layers:
        assert_close(one.prediction.readout_errors, merged[one.layer.name].readout_errors, 1e-3)
        assert_close(one.prediction.mapping_errors, merged[one.layer.name].mapping_errors, 1e-3)


@pytest.mark.parametrize("method", ["sftm", "task_arithmetic"])
def test_another_scaling_or_depth_is_found_in_the_cache(
    recipe_for: Callable[..., Any],
    cached_session: Session,
    small_layers_cached: None,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    calls: list[str] = []
    compute = layer_module._compute
    monkeypatch.setattr(layer_module, "_compute", lambda work, layer: calls.append(layer.name) or compute(work, layer))

    def merged(session: Session, **params: Any) -> tuple[Tensors, int]:
        calls.clear()
        plan = prepare(recipe_for(method=method, params={"calibration": 1.0, "scaling": 1.0} | params), session)
        return {step.entry.name: step.tensor for step in run(plan, session)}, len(calls)

    uncached = dataclasses.replace(cached_session, cache=None)
    assert merged(cached_session)[1] == 13
    for change in ({"depth": 0.3}, {"scaling": 0.5, "depth": 0.7}):
        (wanted, afresh), (found, again) = merged(uncached, **change), merged(cached_session, **change)
        assert (afresh, again) == (13, 0)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert merged(cached_session, calibration=0.5)[1] == 13


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "sftm"])
def test_adapters_stay_low_rank(tmp_path: Path, session: Session, method: str) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    tasks = [save_adapter(tmp_path / f"{seed}", "llama", seed) for seed in (1, 2)]
    params = {"calibration": 1.0, "depth": 0.5}

    def deltas(**settings: Any) -> dict[str, Any]:
        recipe = make_recipe(tmp_path / "base", tasks, method, settings, device="cpu")
        return {one.record.name: one.delta for one in run_deltas(prepare(recipe, session), session)}

    plain, found = deltas(), deltas(**params)
    assert len(found) == 4
    for name, delta in found.items():
        assert isinstance(delta, LowRank) and delta.rank <= plain[name].rank == 6
        share = 0.5 if ".0." in name else 1.0
        assert float(dense(delta).norm()) <= share * float(dense(plain[name]).norm()) * (1 + 1e-5)
    # The adapter that is written adds what the model that is written adds.
    for kind in ("model", "adapter"):
        merge(tmp_path / "base", tasks, tmp_path / kind, method, "cpu", kind=kind, **params)
    merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "again", "average", "cpu")
    base, wanted, again = (load_file(tmp_path / f / "model.safetensors") for f in ("base", "model", "again"))
    for name in (f"{one}" for one in found):
        assert_close(again[name] - base[name], wanted[name] - base[name], 1e-4, what=name)


@pytest.mark.parametrize("method", ["average", "sftm", "ties"])
def test_calibrating_counts_in_memory_and_time(recipe_for: Callable[..., Any], session: Session, method: str) -> None:
    plain, found = (
        prepare(recipe_for(method=method, params={"calibration": strength}, measure="none"), session)
        for strength in (0.0, 1.0)
    )
    assert found.peak_bytes > plain.peak_bytes or method != "average", "the method itself takes more"
    for one, other in zip(plain.cost.entries, found.cost.entries, strict=True):
        entry = next(entry for entry in found.entries if entry.name == one.name)
        if entry.calibrated:
            assert other.seconds > one.seconds and other.memory_bytes >= one.memory_bytes
        else:
            assert other.seconds == one.seconds
