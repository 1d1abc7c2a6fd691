"""Sentence-transformers folders: weights of other modules, and the older layout with a 0_Transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from direct_merge import arrays, direct_merge, distance
from family_builders import TASKS, TEXT, Family, save_family, tokens
from safetensors.torch import load_file, save_file
from test_families import TOLERANCE, load_sound

from sftm_app.api import check, merge
from sftm_app.errors import CompatibilityError

BERT = Family("BertConfig", TEXT, "BertModel", "BertModel", tokens)


def dress(folder: Path, seed: int, main: str = "") -> None:
    """Make a saved model a sentence-transformers folder with a Dense module of its own."""
    if main:
        inner = folder.with_name(f"{folder.name} inner")
        folder.rename(inner)
        folder.mkdir()
        inner.rename(folder / main)
    paths = {main: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"idx": i, "path": path, "type": f"st.{kind}"} for i, (path, kind) in enumerate(paths.items())]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    base, moved = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    dense = {"linear.weight": (4, 8), "linear.bias": (4,)}
    tensors = {name: torch.randn(shape, generator=base) for name, shape in dense.items()}
    if seed:
        tensors = {name: t + 0.1 * torch.randn(t.shape, generator=moved) for name, t in tensors.items()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors", {"format": "pt"})


def save_encoders(root: Path, main: str = "") -> None:
    save_family(root, BERT)
    for seed, name in enumerate(("base", *TASKS)):
        dress(root / name, seed, main)


@pytest.mark.parametrize("main", ["", "0_Transformer"])
@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
def test_every_module_is_merged_and_written_where_it_was(main: str, max_shard_size: str, tmp_path: Path) -> None:
    save_encoders(tmp_path, main)
    out = tmp_path / "out"
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], out, device="cpu", max_shard_size=max_shard_size)
    for place, name in ((main, "encoder.layer.0.intermediate.dense.weight"), ("2_Dense", "linear.weight")):
        base, *tasks = (arrays(tmp_path / folder / place)[name] for folder in ("base", *TASKS))
        files = [load_file(file) for file in sorted((out / place).glob("*.safetensors"))]
        (found,) = (tensors[name].double().numpy() for tensors in files if name in tensors)
        assert distance(found, direct_merge(name, base, tasks), base) < TOLERANCE
    assert [module["path"] for module in json.loads((out / "modules.json").read_text())] == [
        main,
        "1_Pooling",
        "2_Dense",
    ]
    assert (out / main / "config.json").is_file() and (out / "1_Pooling" / "config.json").is_file()
    load_sound("BertModel", out / main)


def test_a_module_that_one_task_lacks_is_merged_from_the_others(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    (tmp_path / "b" / "2_Dense" / "model.safetensors").unlink()
    merge(tmp_path / "base", [tmp_path / name for name in TASKS], tmp_path / "out", device="cpu")
    base, *tasks = (arrays(tmp_path / folder / "2_Dense")["linear.weight"] for folder in ("base", "a", "c"))
    found = arrays(tmp_path / "out" / "2_Dense")["linear.weight"]
    assert distance(found, direct_merge("linear.weight", base, tasks), base) < TOLERANCE


def test_modules_that_are_pickles_or_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    dense = tmp_path / "a" / "2_Dense"
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(CompatibilityError, match="2_Dense: its weights are a pickle"):
        check(tmp_path / "base", [tmp_path / "a"])
    (tmp_path / "b" / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "../a/2_Dense"}]))
    with pytest.raises(CompatibilityError, match="only plain names are allowed"):
        check(tmp_path / "base", [tmp_path / "b"])
    (tmp_path / "c" / "modules.json").write_text("{}")
    with pytest.raises(CompatibilityError, match="should hold a list of modules"):
        check(tmp_path / "base", [tmp_path / "c"])
