"""What people point at: folders of the hub's cache, names on the hub, GGUF files, and other bare refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapters import build
from tiny_checkpoints import change_config, change_weights
from torch.testing import assert_close

from sftm_app.api import check, merge
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import open_checkpoint

COMMITS = ("0" * 40, "1" * 40)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models--org--tuned"
    for commit in COMMITS:
        build("llama").save_pretrained(root / "snapshots" / commit)
    (root / "refs").mkdir()
    return root


def test_a_folder_of_the_hubs_cache_is_its_main_snapshot(repository: Path) -> None:
    with pytest.raises(CheckpointError, match=f"several snapshots: pick one of {COMMITS[0]}, {COMMITS[1]}"):
        open_checkpoint(repository)
    (repository / "refs" / "main").write_text(COMMITS[1])
    assert open_checkpoint(repository).path.name == COMMITS[1]
    (repository / "refs" / "main").unlink()
    shutil.rmtree(repository / "snapshots" / COMMITS[1])
    assert open_checkpoint(repository).path.name == COMMITS[0]


def test_a_name_on_the_hub_is_offered_for_download(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run `sftm fetch teknium/OpenHermes-2\.5`"):
        open_checkpoint(tmp_path / "teknium" / "OpenHermes-2.5")
    with pytest.raises(CheckpointError, match=r"Check the path\.$"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("where", ["", "model.Q4_K_M.gguf"])
def test_gguf_is_named_with_the_way_out(where: str, tmp_path: Path) -> None:
    (tmp_path / "model.Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(CheckpointError, match=r"is a GGUF file of llama\.cpp.+gguf_file='model\.Q4_K_M\.gguf'"):
        open_checkpoint(tmp_path / where)


def test_empty_tensors_are_zero_3(tmp_path: Path) -> None:
    for name in ("base", "a"):
        build("llama").save_pretrained(tmp_path / name)
    change_weights(
        tmp_path / "a" / "model.safetensors",
        lambda tensors: tensors.update({name: torch.zeros(0) for name in tensors if "proj" in name}),
    )
    (problem,) = check(tmp_path / "base", [tmp_path / "a"]).problems
    assert "hold nothing" in problem and "zero_to_fp32.py" in problem


@pytest.mark.parametrize("separate", ["base", "a"])
def test_a_tied_and_a_separate_head_with_the_same_bytes_are_one(separate: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a")):
        model = build("llama", tie_word_embeddings=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * seed * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        model.save_pretrained(tmp_path / name)
    folder, table = tmp_path / separate, "model.embed_tokens.weight"
    change_weights(
        folder / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": tensors[table].clone()})
    )
    change_config(folder, tie_word_embeddings=False)
    merge(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", device="cpu", method="average")
    found, task = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    assert ("lm_head.weight" in found) == (separate == "base")
    for name, tensor in found.items():
        assert_close(tensor, task.get(name, task[table]), msg=name)
