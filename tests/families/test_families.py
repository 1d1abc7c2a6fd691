"""Fine-tunes of many families are merged, checked tensor by tensor, loaded and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from direct_merge import arrays, direct_merge, distance
from family_builders import FAMILIES, TASKS, Family, save_family
from safetensors.torch import load_file

from sftm_app.api import merge

TOLERANCE = 2e-4


def load_sound(class_name: str, folder: Path) -> Any:
    """Load the model in a folder, which must hold exactly the tensors of its class."""
    model, info = getattr(hf, class_name).from_pretrained(folder, output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    return model.eval()


def same_tensor(name: str, prefix: str, tensors: dict[str, Any]) -> Any:
    return next((tensors[key] for key in (name, prefix + name, name.removeprefix(prefix)) if key in tensors), None)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_three_fine_tunes_are_merged(family: Family, tmp_path: Path) -> None:
    save_family(tmp_path, family)
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    base, found = arrays(tmp_path / "base"), arrays(tmp_path / "out")
    tasks = [arrays(tmp_path / name) for name in TASKS]
    assert set(found) == set(base)
    wrong = {}
    for name, ours in base.items():
        theirs = [same_tensor(name, family.prefix, task) for task in tasks]
        transposed = ours.ndim >= 2 and any(part in name for part in family.transposed)
        expected = direct_merge(name, ours, [task for task in theirs if task is not None], transposed)
        if (off := distance(found[name], expected, ours)) > TOLERANCE:
            wrong[name] = off
    assert wrong == {}
    check_heads(family, tmp_path, base, tasks)

    model, before = load_sound(family.base, tmp_path / "out"), load_sound(family.base, tmp_path / "base")
    inputs = family.inputs(model)
    with torch.no_grad():
        said, was = first_output(model(**inputs)), first_output(before(**inputs))
    assert torch.isfinite(said).all()
    assert not torch.allclose(said, was)


def first_output(outputs: Any) -> torch.Tensor:
    return next(value for value in outputs.to_tuple() if isinstance(value, torch.Tensor))


def check_heads(family: Family, root: Path, base: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
    """The tensors of a task that the base lacks are unchanged in the task's own file."""
    for name, task in zip(TASKS, tasks, strict=True):
        own = {key for key in task if same_tensor(key, family.prefix, base) is None}
        file = root / "out" / "heads" / f"{name}.safetensors"
        assert set(load_file(file) if file.exists() else {}) == own
        assert all((load_file(file)[key].numpy() == task[key]).all() for key in own)
        assert bool(own) == ("Classification" in family.task or "Projection" in family.task)
