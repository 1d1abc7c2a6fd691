"""The spectral methods on whole checkpoints and adapters, from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file
from spectral_oracles import Array, cart, filtered, iso_c, iso_cts, knots, tsv_m
from tiny_adapters import build, save_adapter

from sftm_app import cli
from sftm_app.api import merge
from sftm_app.methods import METHODS

ONES = [1.0, 1.0, 1.0]
CASES: dict[str, tuple[dict[str, Any], Callable[[list[Array]], Array]]] = {
    "tsv_m": ({"share": 0.8, "scaling": 0.7}, lambda Ds: 0.7 * tsv_m(Ds, ONES, 0.8)),
    "iso_c": ({"scaling": 0.7}, lambda Ds: 0.7 * iso_c(Ds, ONES)),
    "iso_cts": ({"common": 0.6, "scaling": 0.7}, lambda Ds: 0.7 * iso_cts(Ds, ONES, 0.6)),
    "cart": ({"rank": 3, "coefficient": 0.7}, lambda Ds: cart(Ds, ONES, 3, 0.7)),
    "wudi": ({"cutoff": 0.2, "scaling": 0.7}, lambda Ds: 0.7 * filtered(Ds, ONES, lambda x: x > 0.04)),
    "swudi": ({"time": 20.0, "scaling": 0.7}, lambda Ds: 0.7 * filtered(Ds, ONES, lambda x: 1 - np.exp(-20 * x))),
    "knots": ({"density": 0.3, "scaling": 0.7}, lambda Ds: 0.7 * knots(Ds, ONES, 0.3)),
}
EACH = pytest.mark.parametrize("name", CASES)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """A model's tensors but its head, by the names that all of them have."""
    found = load_file(folder / "model.safetensors")
    return {name.removeprefix("vit."): t for name, t in found.items() if not name.startswith("classifier")}


@EACH
def test_a_merge_of_checkpoints_against_the_papers_equations(
    name: str, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, directly = CASES[name]
    folders = [tiny_models / task for task in "abc"]
    report = merge(tiny_models / "base", folders, tmp_path / "python", name, "cpu", **values)
    base, found, *tasks = map(tensors, (tiny_models / "base", tmp_path / "python", *folders))
    roles = {record.name: record.role for record in report.tensors}
    for key, origin in base.items():
        changes = [(task[key] - origin).double().numpy() for task in tasks]
        if roles[key] == "matrix":
            wanted = directly([D.reshape(len(D), -1) for D in changes]).reshape(origin.shape)
        else:
            wanted = np.mean(changes, axis=0)
        assert_close(found[key] - origin, torch.tensor(wanted), 2e-4, what=key)

    recipe = {"base": str(tiny_models / "base"), "tasks": list(map(str, folders)), "method": name, "params": values}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"device": "cpu"}))
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "cli"), "--quiet"])
    assert not ended.value.code and f"Merged 3 tasks with {name} in" in capsys.readouterr().out
    one, other = (tmp_path / folder / "model.safetensors" for folder in ("python", "cli"))
    assert one.read_bytes() == other.read_bytes()


@EACH
def test_adapters_merge_to_an_adapter_that_makes_the_same_model(name: str, tmp_path: Path) -> None:
    """Some layers are held by one adapter only."""
    build("llama").save_pretrained(tmp_path / "base")
    targets = (["q_proj", "down_proj"], ["q_proj", "up_proj"], ["q_proj", "down_proj"])
    adapters = [
        save_adapter(tmp_path / str(seed), "llama", seed, target_modules=modules, r=2 + seed)
        for seed, modules in enumerate(targets, start=1)
    ]
    whole = merge(tmp_path / "base", adapters, tmp_path / "model", name, "cpu", **CASES[name][0])
    merge(tmp_path / "base", adapters, tmp_path / "adapter", name, "cpu", kind="adapter", **CASES[name][0])
    merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "again", "average", "cpu")
    base, one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "model", "again"))
    changed = 0
    for key, origin in base.items():
        delta = one[key] - origin
        changed += bool(delta.any())
        assert_close(other[key], one[key], 1e-5 * float(delta.abs().max()) + 1e-6, scale=1.0, what=key)
    assert changed == 6 and len(whole.tensors) == len(base)
    assert METHODS[name].stays_low_rank
