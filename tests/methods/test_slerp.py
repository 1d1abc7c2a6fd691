"""SLERP against the formula of the arc, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from numpy.typing import NDArray
from one_matrix_models import folders, save_models
from safetensors.torch import load_file
from tiny_adapters import build, load_adapter, save_adapter
from tiny_checkpoints import change_weights
from torch import Tensor

from sftm_app import cli
from sftm_app.api import inspect, merge
from sftm_app.errors import RecipeError
from sftm_app.linalg.low_rank import Delta, dense
from sftm_app.methods.params import NoParams
from sftm_app.methods.slerp import METHOD

Array = NDArray[np.float64]


def slerp(A: Array, B: Array, t: float) -> Array:
    """Shoemake 1985: the point at the share t of the arc from A to B."""
    cosine = float((A * B).sum() / (np.linalg.norm(A) * np.linalg.norm(B)))
    omega = np.arccos(np.clip(cosine, -1.0, 1.0))
    return np.asarray((np.sin((1 - t) * omega) * A + np.sin(t * omega) * B) / np.sin(omega))


def numpy(tensor: Delta) -> Array:
    return np.asarray(dense(tensor).double().numpy())


def merged(base: Tensor, deltas: Sequence[Delta], weights: Sequence[float] = (1.0, 1.0), idle: float = 0.0) -> Tensor:
    """The merged weight."""
    before = [dense(D).clone() for D in deltas]
    delta = delta_of(METHOD.merge(layer_of(deltas, weights, base, idle), NoParams()))
    assert all(torch.equal(dense(D), was) for D, was in zip(deltas, before, strict=True)), "nothing given is changed"
    return base + delta


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.1, 0.4)])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6,), (3, 2, 2, 2)])
def test_the_arc_between_two_checkpoints(shape: tuple[int, ...], weights: tuple[float, float]) -> None:
    base, *deltas = random_matrices(3, shape)
    found = merged(base, deltas, weights)
    wanted = slerp(numpy(base + deltas[0]), numpy(base + deltas[1]), weights[1] / sum(weights))
    assert_close(found, torch.tensor(wanted))


def test_the_weights_say_how_far_to_go_and_the_length_follows_the_arc() -> None:
    A, B = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    base = torch.tensor([[0.5, -0.25]])
    for weights, degrees in (((2.0, 1.0), 30.0), ((1.0, 1.0), 45.0), ((1.0, 5.0), 75.0)):
        found = merged(base, [A - base, B - base], weights)
        angle = np.deg2rad(degrees)
        assert_close(found, 2 * torch.tensor([[np.cos(angle), np.sin(angle)]]))
    swapped = merged(base, [B - base, A - base], (1.0, 2.0))
    assert_close(swapped, merged(base, [A - base, B - base], (2.0, 1.0)))


def test_large_weights_and_small_changes() -> None:
    """What fine-tuning looks like: the arc is short, and the result lies close to the line."""
    base, *deltas = random_matrices(3, (40, 30))
    base, deltas = 100 * base, [1e-3 * D for D in deltas]
    delta = delta_of(METHOD.merge(layer_of(deltas, None, base), NoParams()))
    A, B = (numpy(base) + numpy(D) for D in deltas)
    assert_close(delta, torch.tensor(slerp(A, B, 0.5) - numpy(base)), 1e-2)
    assert_close(delta, (deltas[0] + deltas[1]) / 2, 1e-2)


@pytest.mark.parametrize(
    ("A", "B", "wanted"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]]),
        ([[1.0, 2.0]], [[3.0, 6.0]], [[1.5, 3.0]]),  # parallel: a quarter of the way on the line
        ([[1.0, 2.0]], [[-1.0, -2.0]], [[0.5, 1.0]]),  # opposite: every arc is as short, so the line
        ([[0.0, 0.0]], [[4.0, 8.0]], [[1.0, 2.0]]),  # no direction: the line
        ([[4.0, 8.0]], [[0.0, 0.0]], [[3.0, 6.0]]),
        ([[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]),
    ],
)
def test_where_there_is_no_arc(A: list[list[float]], B: list[list[float]], wanted: list[list[float]]) -> None:
    base = torch.tensor([[1.0, -1.0]])
    found = merged(base, [torch.tensor(A) - base, torch.tensor(B) - base], (3.0, 1.0))
    assert_close(found, torch.tensor(wanted), scale=1.0)


def test_lora_pairs_are_the_matrices_that_they_make() -> None:
    (base,) = random_matrices(1, (15, 11))
    pairs = [low_rank((15, 11), 2, 1), low_rank((15, 11), 3, 2)]
    wanted = slerp(numpy(base) + numpy(pairs[0]), numpy(base) + numpy(pairs[1]), 0.5)
    assert_close(merged(base, pairs), torch.tensor(wanted))


def test_an_adapter_that_leaves_the_layer_as_it_is_stands_at_the_base() -> None:
    base, D = random_matrices(2, (8, 5))
    wanted = slerp(numpy(base + D), numpy(base), 3.0 / 4.0)
    assert_close(merged(base, [D], [1.0], idle=3.0), torch.tensor(wanted))


def test_a_tensor_that_one_checkpoint_holds_is_its_own() -> None:
    base, D = random_matrices(2, (8, 5))
    assert torch.equal(delta_of(METHOD.merge(layer_of([D], [0.3], base), NoParams())), D)


def test_whole_models_from_python(tmp_path: Path) -> None:
    models = save_models(tmp_path, (40, 24), 2)
    base, *tasks = folders(tmp_path, 2)
    for measure in ("all", "none"):
        entries = [{"path": tasks[0], "weight": 3.0}, {"path": tasks[1]}]
        merge(base, entries, tmp_path / measure, "slerp", "cpu", measure=measure)
        found = load_file(tmp_path / measure / "model.safetensors")
        for name in models[0]:
            wanted = slerp(numpy(models[1][name]), numpy(models[2][name]), 0.25)
            assert_close(found[name], torch.tensor(wanted), 1e-6, what=name)


def test_a_tensor_that_one_of_two_tasks_holds(models: Path, tmp_path: Path) -> None:
    name = "pooler.dense.weight"
    change_weights(models / "base" / "model.safetensors", lambda tensors: tensors.update({name: torch.eye(16)}))
    own = torch.randn(16, 16)
    change_weights(models / "a" / "model.safetensors", lambda tensors: tensors.update({f"vit.{name}": own}))
    report = merge(models / "base", [models / "a", models / "b"], tmp_path / "out", "slerp", "cpu")
    assert_close(load_file(tmp_path / "out" / "model.safetensors")[name], own, 1e-6)
    assert [record.figures.tasks for record in report.tensors if record.name == name] == [("a",)]


def test_adapters_that_touch_different_modules(tmp_path: Path) -> None:
    """As the full models that they make: an adapter without a layer has the base's weight there."""
    build("llama").save_pretrained(tmp_path / "base")
    paths = [
        save_adapter(tmp_path / name, "llama", seed, target_modules=targets)
        for seed, (name, targets) in enumerate({"a": ["q_proj", "down_proj"], "b": ["q_proj", "o_proj"]}.items(), 1)
    ]
    merge(tmp_path / "base", paths, tmp_path / "out", "slerp", "cpu")
    base, found = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "out"))
    full = [load_adapter(path, "llama").merge_and_unload().state_dict() for path in paths]
    n_changed = 0
    for name, origin in base.items():
        A, B = (model[name] for model in full)
        changed = not (torch.equal(A, origin) and torch.equal(B, origin))
        n_changed += changed
        wanted = torch.tensor(slerp(numpy(A), numpy(B), 0.5)) if changed else origin
        assert_close(found[name], wanted, what=name)
    assert n_changed == 6


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_any_other_number_of_tasks_is_refused(
    n_tasks: int, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [tiny_models / name for name in "abc"[:n_tasks]]
    sentence = f"SLERP merges exactly 2 tasks, not {n_tasks}. Choose another method, or 2 tasks."
    with pytest.raises(RecipeError, match=sentence):
        merge(tiny_models / "base", tasks, tmp_path / "out", "slerp")
    with pytest.raises(RecipeError, match=sentence):
        inspect(tiny_models / "base", tasks, method="slerp")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {tiny_models / 'base'}\ntasks: [{', '.join(map(str, tasks))}]\nmethod: slerp\n")
    layer = ["inspect", "--layer", "encoder.layer.0.output.dense"]
    for command in (["merge", "--output", str(tmp_path / "out")], ["check"], ["inspect"], layer):
        with pytest.raises(SystemExit) as caught:
            cli.main([command[0], str(recipe), *command[1:]])
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"sftm: {sentence}\n"
    assert not (tmp_path / "out").exists()
