"""Opening checkpoint folders and reading their tensors."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import change_config, change_weights, header_bytes
from transformers import ViTForImageClassification

from sftm_app.errors import CheckpointError, NumericalError
from sftm_app.weights import checkpoint as checkpoint_module
from sftm_app.weights import reader as reader_module
from sftm_app.weights import weight_files
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.hashing import hash_files
from sftm_app.weights.header import FileStamp, Header, read_header
from sftm_app.weights.json_files import read_json
from sftm_app.weights.reader import open_reader, read_tensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(models: Path) -> Path:
    """Task `a` in shards."""
    folder = models / "sharded"
    ViTForImageClassification.from_pretrained(models / "a").save_pretrained(folder, max_shard_size="6KB")
    assert len(list(folder.glob("*.safetensors"))) >= 2
    return folder


def change_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_an_opened_checkpoint_describes_itself(tiny_models: Path) -> None:
    task = open_checkpoint(tiny_models / "a")
    stored = load_file(tiny_models / "a" / "model.safetensors")
    assert (task.model_type, task.architecture) == ("vit", "ViTForImageClassification")
    assert set(task.tensors) == set(stored)
    assert task.n_parameters == sum(t.numel() for t in stored.values())
    assert task.n_bytes == 4 * task.n_parameters
    assert task.dtypes == ("float32",)
    assert task.id2label == {i: f"label {i} of a" for i in range(3)}
    assert open_checkpoint(tiny_models / "base").id2label == {}


def test_a_weight_file_stands_for_its_folder(tiny_models: Path) -> None:
    assert open_checkpoint(tiny_models / "a" / "model.safetensors") == open_checkpoint(str(tiny_models / "a"))


def test_tensors_are_read_as_stored(tiny_models: Path) -> None:
    stored = load_file(tiny_models / "a" / "model.safetensors")
    with open_reader(open_checkpoint(tiny_models / "a")) as read:
        for name, tensor in stored.items():
            assert torch.equal(read(name), tensor)
            assert read.finite(name, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("path", ["none", "x" * 5000, "nul\0byte", "~nobody-of-this-name/x"])
def test_no_such_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder|is not a path"):
        open_checkpoint(path if path.startswith("~") else tmp_path / path)


def test_wrong_folder_points_at_the_checkpoints_inside(tiny_models: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json.*pick one of a, b, base, c"):
        open_checkpoint(tiny_models)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json.*Pick the folder that `save_pretrained` wrote"):
        open_checkpoint(tmp_path)


def test_file_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        open_checkpoint(tmp_path / "notes.txt")


def test_no_weights(models: Path) -> None:
    (models / "a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        open_checkpoint(models / "a")


def test_weights_under_another_name(models: Path) -> None:
    (models / "a" / "model.safetensors").rename(models / "a" / "diffusion.safetensors")
    with pytest.raises(CheckpointError, match=r"holds diffusion\.safetensors; rename"):
        open_checkpoint(models / "a")


def test_pickles_are_never_opened(models: Path) -> None:
    (models / "a" / "model.safetensors").rename(models / "a" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle \(pytorch_model\.bin\), which can run code"):
        open_checkpoint(models / "a")


def test_adapter_folder(models: Path) -> None:
    (models / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*merge_and_unload"):
        open_checkpoint(models / "a")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a":' + b"[" * 200_000, b'{"a":' + b"9" * 9000 + b"}"]
)
def test_config_that_is_not_a_json_object(models: Path, content: bytes) -> None:
    (models / "a" / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: .*Download it again"):
        open_checkpoint(models / "a")


def test_config_that_is_a_folder(models: Path) -> None:
    (models / "a" / "config.json").unlink()
    (models / "a" / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(models / "a")


def test_truncated_weights(models: Path) -> None:
    file = models / "a" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="cut off"):
        open_checkpoint(models / "a")


def test_no_tensors(models: Path) -> None:
    save_file({}, models / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="hold no tensors"):
        open_checkpoint(models / "a")


def test_shards_read_like_a_single_file(models: Path, sharded: Path) -> None:
    single, split = open_checkpoint(models / "a"), open_checkpoint(sharded)
    assert set(split.tensors) == set(single.tensors)
    assert split.n_bytes == single.n_bytes
    with open_reader(single) as left, open_reader(split) as right:
        assert all(torch.equal(left(name), right(name)) for name in single.tensors)


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: there is no such file"):
        open_checkpoint(sharded)


def test_tensor_absent_from_its_shard(sharded: Path) -> None:
    change_index(sharded, lambda index: index["weight_map"].update(ghost=next(iter(index["weight_map"].values()))))
    with pytest.raises(CheckpointError, match="lacks tensor 'ghost', which the index places there"):
        open_checkpoint(sharded)


def test_tensor_that_the_index_does_not_name(sharded: Path) -> None:
    change_index(sharded, lambda index: index["weight_map"].pop("classifier.bias"))
    with pytest.raises(CheckpointError, match=r"holds tensor 'classifier\.bias', which the index does not"):
        open_checkpoint(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    home = json.loads((sharded / INDEX).read_text())["weight_map"]["classifier.bias"]
    other = next(file for file in sorted(sharded.glob("*.safetensors")) if file.name != home)
    change_weights(other, lambda tensors: tensors.update({"classifier.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"holds tensor 'classifier\.bias', which the index does not place there"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "name",
    [
        "../a/model.safetensors",
        "/etc/passwd",
        "/tmp/x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "sub/x.safetensors",
        "sub\\x.safetensors",
        "x.safetensors\0",
        "x.bin",
        ".safetensors",
        "..safetensors",
        "",
        7,
        None,
        ["x.safetensors"],
    ],
)
def test_shard_names_that_are_not_plain_names(sharded: Path, name: Any) -> None:
    change_index(sharded, lambda index: index["weight_map"].update({"classifier.bias": name}))
    with pytest.raises(CheckpointError, match=r"only plain \.safetensors names"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_a_table(sharded: Path, weight_map: Any) -> None:
    change_index(sharded, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(CheckpointError, match="no table `weight_map`"):
        open_checkpoint(sharded)


def test_index_next_to_a_single_file_is_ambiguous(models: Path, sharded: Path) -> None:
    shutil.copy(models / "b" / "model.safetensors", sharded)
    with pytest.raises(CheckpointError, match="holds both"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("damage", ["truncate", "touch", "replace", "remove"])
def test_a_file_that_changes_while_in_use_is_refused(models: Path, damage: str) -> None:
    file = models / "a" / "model.safetensors"
    checkpoint = open_checkpoint(models / "a")
    with open_reader(checkpoint) as read:
        read("classifier.bias")
        if damage == "truncate":
            os.truncate(file, 1000)
        elif damage == "touch":
            os.utime(file, ns=(1, 1))
        elif damage == "replace":
            stamp = file.stat()
            shutil.copy(file, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        else:
            file.unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*Start again"):
            read("classifier.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_counted(models: Path, value: float) -> None:
    name = "vit.layernorm.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][:3] = value

    change_weights(models / "a" / "model.safetensors", spoil)
    with open_reader(open_checkpoint(models / "a")) as read:
        assert torch.equal(read(name)[:3].isfinite(), torch.zeros(3, dtype=torch.bool))
        with pytest.raises(NumericalError, match=rf"a/model\.safetensors: tensor '{name}' holds 3 values .* out of 16"):
            read.finite(name)


def test_a_sum_that_overflows_is_not_nan(models: Path) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["vit.layernorm.weight"][:] = 3e38

    change_weights(models / "a" / "model.safetensors", grow)
    with open_reader(open_checkpoint(models / "a")) as read:
        assert float(read.finite("vit.layernorm.weight")[0]) == pytest.approx(3e38)


def test_a_file_of_tensors(tmp_path: Path) -> None:
    save_file({"images": torch.arange(6, dtype=torch.uint8).reshape(2, 3)}, tmp_path / "s.safetensors")
    assert read_tensors(tmp_path / "s.safetensors")["images"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("id2label", [["a"], {"x": "a"}, None])
def test_labels_that_are_not_numbered(models: Path, id2label: Any) -> None:
    change_config(models / "a", id2label=id2label)
    assert open_checkpoint(models / "a").id2label == {}


def test_missing_permission_is_reported(models: Path, as_ordinary_user: Path) -> None:
    outer = as_ordinary_user / "outer"
    folder = outer / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    (folder / "model.safetensors").write_bytes(header_bytes({}))
    for closed in (folder / "model.safetensors", folder / "config.json", folder, outer):
        closed.chmod(0)
        with pytest.raises(CheckpointError, match="no permission to read"):
            open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="no permission to read"):
        read_json(folder / "config.json")


def test_a_disk_that_fails_while_a_folder_is_opened_is_reported(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_module, "read_headers", fail)
    with pytest.raises(CheckpointError, match=r"a: cannot be read \(Input/output error\)"):
        open_checkpoint(tiny_models / "a")


def test_a_file_that_changes_right_after_its_header_was_read_is_noticed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = models / "a" / "model.safetensors"

    def read_then_change(path: Path) -> Header:
        header = read_header(path)
        change_weights(file, lambda tensors: tensors["classifier.bias"].add_(1))
        return header

    monkeypatch.setattr(weight_files, "read_header", read_then_change)
    task = open_checkpoint(models / "a")
    with open_reader(task) as read, pytest.raises(CheckpointError, match="was changed while in use"):
        read("classifier.bias")
    with pytest.raises(CheckpointError, match="was changed while in use"):
        hash_files(task)


def test_a_file_that_is_swapped_for_another_and_back_is_noticed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its path holds before and after the reading says nothing of what was read."""
    folder, other, away = models / "a", models / "b", models / "away"
    task = open_checkpoint(folder)

    class Swapped(FileIO):
        def __init__(self, file: Path) -> None:
            folder.rename(away)
            other.rename(folder)
            super().__init__(file)
            folder.rename(other)
            away.rename(folder)

    monkeypatch.setattr(reader_module, "FileIO", Swapped)
    with open_reader(task) as read, pytest.raises(CheckpointError, match="was changed while in use"):
        read("vit.layernorm.bias")


def test_a_cached_hash_is_used_until_the_file_changes(models: Path) -> None:
    cache: dict[tuple[Path, FileStamp], str] = {}

    def keep(path: Path, stamp: FileStamp, compute: Callable[[], str]) -> str:
        if (path, stamp) not in cache:
            cache[path, stamp] = compute()
        return cache[path, stamp]

    def hashes() -> dict[str, str]:
        return hash_files(open_checkpoint(models / "a"), keep=keep)

    first = hashes()
    assert first == hash_files(open_checkpoint(models / "a"))
    cache |= dict.fromkeys(cache, "known")
    assert list(hashes().values()) == ["known"]
    file = models / "a" / "model.safetensors"
    status, raw = file.stat(), bytearray(file.read_bytes())
    raw[-1] ^= 1
    time.sleep(0.02)
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert next(iter(hashes().values())) not in ("known", *first.values()) and len(cache) == 2
