"""A negative weight takes away what a task changed, as a positive weight of the opposite change does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import save_adapter
from torch.testing import assert_close

from sftm_app.api import merge
from sftm_app.errors import RecipeError
from sftm_app.methods import METHODS
from sftm_app.planning.recipe import make_recipe

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, tasks a and b, and a task with b's changes of the opposite sign, as files without a config."""
    root = tmp_path_factory.mktemp("signs")
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layers.{i}.{name}.weight": (8, 8) for i in range(2) for name in ("up", "down")} | {"norm.weight": (8,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moves = {who: {n: 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()} for who in "ab"}
    for who, sign in (("a", 1.0), ("b", 1.0), ("minus", -1.0)):
        move = moves["b" if who == "minus" else who]
        write(root / who / "model.safetensors", {name: t + sign * move[name] for name, t in base.items()})
    write(root / "base" / "model.safetensors", base)
    return root


def write(file: Path, tensors: Tensors) -> None:
    file.parent.mkdir()
    save_file(tensors, file, {"format": "pt"})


def merged(root: Path, out: Path, second: str, weight: float, **settings: object) -> Tensors:
    tasks = [{"path": root / "a", "name": "a"}, {"path": root / second, "name": "b", "weight": weight}]
    merge(root / "base", tasks, out, device="cpu", **settings)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_negative_weight_is_the_opposite_change(method: str, opposite: Path, tmp_path: Path) -> None:
    taken_away = merged(opposite, tmp_path / "one", "b", -0.5, method=method)
    added = merged(opposite, tmp_path / "two", "minus", 0.5, method=method)
    for name, tensor in added.items():
        assert_close(taken_away[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{method}: {name}")


def test_a_negative_scaling_is_a_multiple(opposite: Path, tmp_path: Path) -> None:
    base = load_file(opposite / "base" / "model.safetensors")
    plus, minus = (
        merged(opposite, tmp_path / str(scaling), "b", 1.0, method="task_arithmetic", scaling=scaling)
        for scaling in (0.5, -0.5)
    )
    name = "layers.0.up.weight"
    assert_close(minus[name] - base[name], base[name] - plus[name])
    with pytest.raises(RecipeError, match=r"scaling: -9 is outside -\d to \d"):
        make_recipe("b", ["t"], "task_arithmetic", {"scaling": -9})


def test_an_adapter_can_be_taken_away(tmp_path: Path) -> None:
    from tiny_adapters import build

    build("llama").save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "task", "llama", 1)
    outputs = []
    for weight in (1.0, -1.0):
        out = tmp_path / f"out {weight}"
        task = {"path": tmp_path / "task", "name": "t", "weight": weight}
        merge(tmp_path / "base", [task], out, device="cpu", method="average")
        outputs.append(load_file(out / "model.safetensors"))
    base = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(outputs[0][name], base[name])
    assert_close(outputs[0][name] - base[name], base[name] - outputs[1][name])


@pytest.mark.parametrize("weight", [0, float("nan"), 1e31, -1e31, True])
def test_weights_outside_the_range_are_refused(weight: float) -> None:
    with pytest.raises(RecipeError, match=r"Give a number from -1e\+30 to 1e\+30 other than 0"):
        make_recipe("b", [{"path": "t", "weight": weight}])
