"""Pickled weights become safetensors only when asked for, and nothing in them runs. (FAULTS A12)"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapters import build

from sftm_app.cli import main
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.pickles import convert, refuse_unbounded


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_folder_is_converted_with_its_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    state = model.state_dict()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    torch.save({"lr": 0.1}, tmp_path / "model" / "training_args.bin")
    with pytest.raises(CheckpointError, match="run `sftm convert FOLDER`"):
        open_checkpoint(tmp_path / "model")
    with pytest.raises(SystemExit) as left:
        main(["convert", str(tmp_path / "model")])
    assert left.value.code == 0
    out = tmp_path / "model-safetensors"
    assert capsys.readouterr().out.splitlines()[-1] == f"The converted checkpoint is in {out}."
    found = load_file(out / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert open_checkpoint(out).architecture == "LlamaForCausalLM"
    assert not (out / "training_args.bin").exists()


def test_a_snapshot_of_the_hubs_cache(tmp_path: Path) -> None:
    """Its files are links to the cache's blobs. A link elsewhere is refused."""
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    torch.save({"x": torch.ones(2)}, blobs / "1")
    (blobs / "2").write_text("{}")
    for name, blob in (("pytorch_model.bin", "1"), ("config.json", "2")):
        (snapshot / name).symlink_to(blobs / blob)
    convert(snapshot, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["x"], torch.ones(2))
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="a link that leads out of the checkpoint"):
        convert(snapshot, tmp_path / "out-2")


def test_shards_and_their_index(tmp_path: Path) -> None:
    parts = [{"a": torch.ones(2)}, {"b": torch.zeros(3)}]
    places = {}
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(part, tmp_path / name, _use_new_zipfile_serialization=number == 1)  # and torch's older format
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(tmp_path, tmp_path.with_name("out"))
    assert set(open_checkpoint(tmp_path.with_name("out")).tensors) == {"a", "b"}


def test_weights_inside_a_larger_pickle(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2), "step": 5}}, tmp_path / "last.ckpt")
    notes = convert(tmp_path / "last.ckpt", tmp_path / "out")
    assert notes[1:3] == [
        "The weights were read from its entry 'state_dict'.",
        "1 entries that are no tensors were left out: step.",
    ]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a"], torch.ones(2))


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"a": torch.ones(2), "b": Evil(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is no plain pickle of tensors, so it is not loaded"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "out")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError, match="is no plain pickle of tensors"):
        convert(tmp_path / "plain.bin", tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_archives_that_grow_are_not_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.bin")
    refuse_unbounded(tmp_path / "stored.bin")
    grown = zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "stored.bin") as stored, grown as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(CheckpointError, match="holds compressed or too many entries"):
        convert(tmp_path / "packed.bin", tmp_path / "out")


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="holds no table of tensors, but epoch"):
        convert(tmp_path / "a.bin", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no pickled weights"):
        convert(tmp_path / "empty", tmp_path / "out")
