"""How merged tensors are compared, and that the masks given to other tools are the app's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.agreement import COMPARISONS, compare, merge_ours, mergekit_config, row, save_uniform
from bench.reference import SMALL_TOWER, make_towers
from sftm_app.methods import get_method
from sftm_app.methods.params import make_params


def test_differences_are_relative_to_the_change() -> None:
    base = {"fc.weight": torch.ones(4, 5), "embedding.weight": torch.ones(4, 5), "bias": torch.ones(5)}
    theirs = {name: tensor + 0.25 for name, tensor in base.items()}
    ours = {name: tensor.clone() for name, tensor in theirs.items()}
    ours["fc.weight"][1, 2] += 0.125
    ours["bias"][0] = 1.0
    found = compare(base, ours, theirs)
    assert [(one.tensor, one.group, one.relative) for one in found] == [
        ("bias", "biases and norms", 1.0),
        ("fc.weight", "linear layers", 0.5),
        ("embedding.weight", "tables and convolutions", 0.0),
    ]
    assert [one.one_only for one in found] == [0.2, 0.0, 0.0]
    assert found[1].rounding == pytest.approx(1.25 * 2**-24 / 0.25)
    wanted = "| task arithmetic | mergekit | 5e-01 (3e-07) | 1e+00 (3e-07) | 0e+00 (3e-07) | 0.0% | nothing |"
    assert row(COMPARISONS[0], found) == wanted


def test_settings_are_those_of_methods() -> None:
    assert len({one.name for one in COMPARISONS}) == len(COMPARISONS)
    for one in COMPARISONS:
        make_params(get_method(one.method).params, one.params, one.name)


def test_slerp_starts_at_the_first_task() -> None:
    files = ["base", "first", "second", "third"]
    by_name = {one.name: mergekit_config(one, files) for one in COMPARISONS if one.peer == "mergekit"}
    assert by_name["mergekit-slerp"]["base_model"] == "first"
    assert [model["model"] for model in by_name["mergekit-slerp"]["models"]] == ["second"]
    assert by_name["mergekit-ties"]["base_model"] == "base"
    assert [model["model"] for model in by_name["mergekit-ties"]["models"]] == ["first", "second", "third"]


def test_the_numbers_given_to_others_are_those_of_our_masks(tmp_path: Path) -> None:
    work = make_towers(tmp_path / "work", SMALL_TOWER, 2)
    numbers = [load_file(file) for file in save_uniform(work, tmp_path)]
    (one,) = (one for one in COMPARISONS if one.name == "mergekit-dare_linear")
    merged = merge_ours(one, work, tmp_path)
    base, *tasks = (load_file(folder / "model.safetensors") for folder in (work.base, *work.tasks))
    for name, origin in base.items():
        kept = [values[name] < one.params["density"] for values in numbers]
        changed = torch.stack([mask & (task[name] != origin) for mask, task in zip(kept, tasks, strict=True)]).any(0)
        # A change may be too small to show in float32.
        assert bool(((merged[name] != origin) <= changed).all())
        assert float((merged[name] != origin).double().mean()) > 0.95 * float(changed.double().mean())
