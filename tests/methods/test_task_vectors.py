"""TIES with whole task vectors trimmed, as in the paper: merged, predicted, cached, and on workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from one_matrix_models import NORM, UP, folders, save_models
from safetensors.torch import load_file
from tiny_adapters import build, load_adapter, save_adapter
from tiny_checkpoints import change_weights
from torch import Tensor

from sftm_app.api import merge
from sftm_app.engine import task_vectors
from sftm_app.engine.run import run
from sftm_app.inspection.inspector import Inspector
from sftm_app.inspection.layers import map_layers
from sftm_app.methods import METHODS
from sftm_app.methods.settings import merge_settings
from sftm_app.pipeline import prepare
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import make_recipe
from sftm_app.session import Session

WHOLE = {"trim": "whole task vector"}


def ties(deltas: Sequence[dict[str, Tensor]], density: float) -> dict[str, Tensor]:
    """Yadav et al. 2023, algorithm 1, on whole task vectors in float64."""
    flat = np.stack([np.concatenate([D.double().numpy().ravel() for D in task.values()]) for task in deltas])
    n_kept = int(density * flat.shape[1])
    smallest = np.sort(np.abs(flat), axis=1)[:, -n_kept][:, None]
    trimmed = np.where(np.abs(flat) >= smallest, flat, 0.0)
    agrees = trimmed * np.sign(trimmed.sum(0)) > 0
    merged = np.where(agrees, trimmed, 0.0).sum(0) / np.maximum(1, agrees.sum(0))
    sizes = [D.numel() for D in deltas[0].values()]
    parts = np.split(merged, np.cumsum(sizes)[:-1])
    return {name: torch.tensor(part).reshape(D.shape) for (name, D), part in zip(deltas[0].items(), parts, strict=True)}


def changes(models: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    base, *tasks = models
    return [{name: task[name] - tensor for name, tensor in base.items()} for task in tasks]


@pytest.fixture
def models(tmp_path: Path) -> list[dict[str, Tensor]]:
    """A base and three tasks; the first task changes a part of one matrix twenty times as much as all else."""
    return save_models(tmp_path, (96, 80), 3, louder_rows=10)


def test_a_whole_task_vector_is_trimmed(models: list[dict[str, Tensor]], tmp_path: Path) -> None:
    base, *tasks = folders(tmp_path, 3)
    for density in (0.05, 0.2, 0.6):
        wanted = ties(changes(models), density)
        output = tmp_path / f"out-{density}"
        merge(base, tasks, output, "ties", "cpu", density=density, **WHOLE)
        found = load_file(output / "model.safetensors")
        for name, origin in models[0].items():
            scale = float(wanted[UP].abs().max())
            assert_close(found[name] - origin, wanted[name], 1e-4, scale=scale, what=name)
    per_tensor = merge_file(base, tasks, tmp_path / "per tensor", density=0.05)
    assert int((per_tensor[NORM] - models[0][NORM]).count_nonzero()) > 0
    alone = ties(changes([models[0], models[1]]), 0.05)
    assert not alone[NORM].any(), "the loud rows take the whole share, so this task's norm is dropped"


def merge_file(base: Path, tasks: Sequence[Path], output: Path, **params: Any) -> dict[str, Tensor]:
    merge(base, tasks, output, "ties", "cpu", **params)
    return load_file(output / "model.safetensors")


def test_one_tensor_alone_is_merged_as_in_the_whole(
    models: list[dict[str, Tensor]], tmp_path: Path, session: Session
) -> None:
    """As a worker of a cluster does it, whose plan holds one entry."""
    base, *tasks = folders(tmp_path, 3)
    plan = prepare(make_recipe(base, tasks, "ties", WHOLE, device="cpu"), session)
    whole = {step.entry.name: step.tensor for step in run(plan, session)}
    prepared = task_vectors.prepare_plan(plan, session)
    assert prepared.prepared is not None and len(prepared.prepared) == 3 and min(prepared.prepared) > 0
    assert task_vectors.prepare_plan(prepared, session) is prepared
    for given in (plan, prepared):
        for entry in given.entries:
            (step,) = run(dataclasses.replace(given, entries=(entry,)), session)
            assert torch.equal(step.tensor, whole[entry.name])


def test_other_methods_read_nothing(models: list[dict[str, Tensor]], tmp_path: Path, session: Session) -> None:
    base, *tasks = folders(tmp_path, 3)
    for method, params in (("ties", {}), ("average", {}), ("dare_linear", {})):
        plan = prepare(make_recipe(base, tasks, method, params, device="cpu"), session)
        assert task_vectors.prepare_plan(plan, session).prepared == ()


def test_a_large_tensor_is_read_piece_by_piece(
    models: list[dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *tasks = folders(tmp_path, 3)
    whole = merge_file(base, tasks, tmp_path / "whole", **WHOLE)
    monkeypatch.setattr(task_vectors, "READ_ELEMENTS", 1000)
    pieces = merge_file(base, tasks, tmp_path / "pieces", **WHOLE)
    assert all(torch.equal(pieces[name], tensor) for name, tensor in whole.items())


def test_the_numbers_are_cached_and_a_layer_follows_from_all_tensors(
    tmp_path: Path, cached_session: Session, monkeypatch: pytest.MonkeyPatch, small_layers_cached: None
) -> None:
    models = save_models(tmp_path, (96, 80), 2)
    base, *tasks = folders(tmp_path, 2)
    looked = []

    def watched(*given: Any) -> Any:
        looked.append(given[1])
        return original(*given)

    original = task_vectors.task_vector
    monkeypatch.setattr(task_vectors, "task_vector", watched)

    def merged(output: str, **params: Any) -> dict[str, Tensor]:
        merge(base, tasks, tmp_path / output, "ties", "cpu", session=cached_session, **WHOLE, **params)
        return load_file(tmp_path / output / "model.safetensors")

    first = merged("first")
    assert sorted(looked) == [0, 0, 1, 1], "two passes for each task"
    merged("again")
    half = merged("half", scaling=0.5)
    assert len(looked) == 4, "nothing is read again, at another scaling neither"
    assert_close(half[UP] - models[0][UP], 0.5 * (first[UP] - models[0][UP]), 1e-4)
    merged("denser", density=0.3)
    assert len(looked) == 8
    # The matrix stays as it is, but a larger change elsewhere takes more of the share.
    change_weights(tasks[0] / "model.safetensors", lambda tensors: tensors[NORM].add_(10.0))
    found = merged("other")
    models[1][NORM] = models[1][NORM] + 10.0
    wanted = ties(changes(models), 0.2)
    assert_close(found[UP] - models[0][UP], wanted[UP], 1e-4)
    assert not torch.equal(found[UP], first[UP])


def test_adapters_and_full_checkpoints(tmp_path: Path) -> None:
    """A task vector is what the task holds: an adapter's has its layers only."""
    build("llama").save_pretrained(tmp_path / "base")
    paths = [save_adapter(tmp_path / name, "llama", seed) for seed, name in enumerate("ab", 1)]
    base = load_file(tmp_path / "base" / "model.safetensors")
    full = [load_adapter(path, "llama").merge_and_unload().state_dict() for path in paths]
    held = [name for name, tensor in base.items() if not torch.equal(full[0][name], tensor)]
    assert 0 < len(held) < len(base)
    deltas = [{name: model[name] - base[name] for name in held} for model in full]
    wanted = ties(deltas, 0.2)
    found = merge_file(tmp_path / "base", paths, tmp_path / "out", **WHOLE)
    for name, tensor in base.items():
        change = wanted.get(name, torch.zeros(tensor.shape, dtype=torch.float64))
        assert_close(found[name] - tensor, change, 1e-3, scale=float(wanted[held[0]].abs().max()), what=name)


def test_inspect_predicts_it(tiny_models: Path, tmp_path: Path, session: Session) -> None:
    recipe = make_recipe(tiny_models / "base", [tiny_models / name for name in "abc"], "ties")
    found = open_inputs(recipe, session)
    settings = merge_settings("ties", {**WHOLE, "density": 0.3}, (1.0, 1.0, 1.0))
    report = merge(tiny_models / "base", [tiny_models / name for name in "abc"], tmp_path / "out", "ties", "cpu",
                   measure="all", density=0.3, **WHOLE)  # fmt: skip
    inspector, layers = Inspector(), map_layers(found)
    per_tensor = merge_settings("ties", {"density": 0.3}, (1.0, 1.0, 1.0))
    for layer in layers[1:4]:
        errors = inspector.what_if(found, layer).predict(settings).readout_errors
        assert_close(errors, list(report_errors(report, layer.name)), 1e-3, what=layer.name)
        assert errors != inspector.what_if(found, layer).predict(per_tensor).readout_errors


def report_errors(report: Any, name: str) -> Sequence[float]:
    (record,) = (record for record in report.tensors if record.name == name)
    return tuple(record.figures.readout_errors)


def test_methods_that_prepare() -> None:
    assert [name for name, method in METHODS.items() if method.prepare] == ["ties", "magnitude"]
