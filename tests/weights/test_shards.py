"""Links and wrong sizes among the files of a sharded checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sftm_app.api import merge
from sftm_app.errors import CheckpointError
from sftm_app.preflight.matching import Source
from sftm_app.preflight.preflight import preflight
from sftm_app.weights.checkpoint import open_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(models: Path) -> Path:
    """The tiny base in shards, saved by transformers."""
    from transformers import ViTModel

    folder = models / "sharded"
    ViTModel.from_pretrained(models / "base", add_pooling_layer=False).save_pretrained(folder, max_shard_size="6KB")
    return folder


def link_out(file: Path, target: Path) -> None:
    """Move a file to `target` and leave a relative link to it, as the hub's cache does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)
    file.symlink_to(os.path.relpath(target, file.parent))


def test_a_link_out_of_the_checkpoint_is_refused(sharded: Path, models: Path, tmp_path: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    link_out(shard, tmp_path / "elsewhere" / "weights")
    with pytest.raises(CheckpointError, match=r"leads out of the checkpoint, to .*elsewhere.*Put the file itself"):
        open_checkpoint(sharded)
    link_out(models / "a" / "model.safetensors", tmp_path / "elsewhere" / "single")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        open_checkpoint(models / "a")


@pytest.mark.parametrize("place", ["snapshots/0123abc", "snapshots/0123abc/unet"])
def test_links_of_the_hubs_cache_and_inside_the_folder_are_followed(sharded: Path, tmp_path: Path, place: str) -> None:
    snapshot = tmp_path / "models--org--name" / place
    snapshot.parent.mkdir(parents=True)
    sharded.rename(snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        link_out(file, tmp_path / "models--org--name" / "blobs" / f"{number:064x}")
    inner = sorted(snapshot.glob("model-*.safetensors"))[0]
    inner.resolve().rename(snapshot / "renamed")
    inner.unlink()
    inner.symlink_to("renamed")
    assert len(open_checkpoint(snapshot).tensors) == 38


@pytest.mark.parametrize("place", ["other/blobs", "blobs", "models--org--other/blobs"])
def test_blobs_of_another_place_are_not_the_caches(sharded: Path, tmp_path: Path, place: str) -> None:
    """A folder called blobs next to a checkpoint, or the blobs of another model, are not where its files lie."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    for folder in (sharded, snapshot):
        if folder is snapshot:
            snapshot.parent.mkdir(parents=True)
            sharded.rename(snapshot)
        shard = sorted(folder.glob("model-*.safetensors"))[0]
        kept = shard.read_bytes()
        link_out(shard, tmp_path / place / "weights")
        with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
            open_checkpoint(folder)
        shard.unlink()
        shard.write_bytes(kept)


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", INDEX])
def test_configs_and_indexes_may_not_be_links_out_either(sharded: Path, tmp_path: Path, name: str) -> None:
    file = sharded / name
    if not file.exists():
        file.write_text(json.dumps({"peft_type": "LORA"}))
    link_out(file, tmp_path / "elsewhere" / name)
    with pytest.raises(CheckpointError, match=rf"{name}: is a link that leads out of the checkpoint"):
        open_checkpoint(sharded)


def test_links_in_a_circle_are_refused(models: Path) -> None:
    (models / "a" / "model.safetensors").unlink()
    (models / "a" / "model.safetensors").symlink_to(models / "a" / "model.safetensors")
    with pytest.raises(CheckpointError):
        open_checkpoint(models / "a")


@pytest.mark.parametrize("linked", ["1_Dense", "additional_chat_templates"])
def test_a_linked_folder_below_a_checkpoint_is_never_published(models: Path, tmp_path: Path, linked: str) -> None:
    """FAULTS A21: the file itself is no link, but a folder on the way to it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("config.json", "model.safetensors", "a.jinja"):
        (outside / name).write_text("secret")
    (models / "base" / linked).symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"{linked}.*leads out of the checkpoint"):
        merge(models / "base", [models / "a"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("claimed", [1, "many", None])
def test_a_wrong_total_size_is_a_note(sharded: Path, models: Path, claimed: object) -> None:
    def notes() -> list[str]:
        found = preflight(open_checkpoint(sharded), [Source("a", open_checkpoint(models / "a"), 1.0)])
        return [note for note in found.notes if "index" in note]

    assert not notes()
    index = json.loads((sharded / INDEX).read_text())
    size = index["metadata"].pop("total_size")
    if claimed is not None:
        index["metadata"]["total_size"] = claimed
    (sharded / INDEX).write_text(json.dumps(index))
    if claimed is None:
        assert not notes()
    else:
        assert notes() == [
            f"base: The index says that the tensors take {claimed} bytes in total, but the files hold {size}. "
            "Every tensor in the index is there, so the files are used as they are."
        ]
