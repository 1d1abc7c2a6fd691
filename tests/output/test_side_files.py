"""Files next to a checkpoint: shards that no index names, links that lead elsewhere, default class names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import build, save_adapter

from sftm_app import check, merge
from sftm_app.errors import CheckpointError, CompatibilityError
from sftm_app.weights.checkpoint import index_note, open_checkpoint


def shard(folder: Path, size: str = "10KB") -> Path:
    build("llama").save_pretrained(folder, max_shard_size=size)
    return folder


def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = shard(tmp_path / "base")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    save_file({"unrelated": torch.zeros(2)}, folder / "adapter.safetensors")
    open_checkpoint(folder)
    shutil.copy(shards[0], folder / "model-00099-of-00099.safetensors")
    with pytest.raises(CheckpointError, match=r"00099.*is a shard that model.safetensors.index.json does not name"):
        open_checkpoint(folder)


def test_a_wrong_total_size_is_noted_for_one_shard_too(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    build("llama").save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 7}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    note = index_note(open_checkpoint(folder))
    assert note is not None and "take 7 bytes" in note


def test_an_adapter_and_a_bare_file_may_not_be_links_out(tmp_path: Path) -> None:
    task = save_adapter(tmp_path / "task", "llama", 1)
    (task / "adapter_model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (task / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="link that leads out of the checkpoint"):
        open_checkpoint(task)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "weights.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="link that leads out of the checkpoint"):
        open_checkpoint(tmp_path / "bare" / "weights.safetensors")


def test_a_side_file_that_is_a_link_out_is_never_published(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "base" / "vocab.txt").symlink_to(tmp_path / "secret")
    task = save_adapter(tmp_path / "task", "llama", 1)
    with pytest.raises(CompatibilityError, match=r"vocab.txt: is a link that leads out of the checkpoint"):
        merge(tmp_path / "base", [task], tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out*"))


def test_default_class_names_make_no_head(tmp_path: Path) -> None:
    """A language model has no classes, whatever its config says, and LABEL_0 names nothing."""
    build("llama", tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    model = build("llama", tie_word_embeddings=False, id2label={0: "yes", 1: "no", 2: "maybe"})
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    model.save_pretrained(tmp_path / "task")
    found = check(tmp_path / "base", [tmp_path / "task"]).require()
    assert "lm_head.weight" in found.matches[0].names and not found.matches[0].heads

    build("bert").save_pretrained(tmp_path / "bert")
    for name, labels, heads in (("same", ["LABEL_0", "LABEL_1", "LABEL_2"], 0), ("other", ["a", "b", "c"], 2)):
        build("bert", id2label=dict(enumerate(labels))).save_pretrained(tmp_path / name)
        assert len(check(tmp_path / "bert", [tmp_path / name]).matches[0].heads) == heads
