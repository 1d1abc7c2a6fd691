"""A cached architecture is what transformers answered."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftm_app import caching
from sftm_app.architecture import known_architectures, reading
from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.reading import read_architecture
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture
def base(tiny_models: Path) -> Checkpoint:
    return open_checkpoint(tiny_models / "base")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "architectures"


def refuse(*arguments: object) -> Architecture:
    raise AssertionError("was asked again")


def in_order(found: Architecture) -> tuple[object, ...]:
    return found, list(found.owners), list(found.file_names), list(found.ties), list(found.submodels)


def test_a_second_process_reads_the_file(base: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = read_architecture(base.config, base.tensors)
    assert in_order(ArchitectureCache(folder).read(base.config, base.tensors)) == in_order(asked)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(reading, "read_architecture", refuse)
    second = ArchitectureCache(folder)
    assert in_order(second.read(base.config, base.tensors)) == in_order(asked)
    # The model's origin does not matter.
    assert second.read(base.config | {"_name_or_path": "elsewhere"}, base.tensors) == asked


def test_everything_that_an_answer_depends_on_is_in_the_key(
    base: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArchitectureCache(folder)
    cache.read(base.config, base.tensors)
    monkeypatch.setattr(reading, "read_architecture", refuse)
    names = sorted(base.tensors)
    for question in (
        (base.config | {"num_hidden_layers": 7}, names),
        (base.config, names[1:]),
        (base.config, names, frozenset(names[:1])),
    ):
        with pytest.raises(AssertionError, match="asked again"):
            cache.read(*question)
    monkeypatch.setattr(known_architectures, "version", lambda package: "another")
    with pytest.raises(AssertionError, match="asked again"):
        ArchitectureCache(folder).read(base.config, base.tensors)


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"owners": {}}', b'{"owners": {"a": {}}, "keys": []}'])
def test_a_damaged_file_is_replaced(base: Checkpoint, folder: Path, left: bytes) -> None:
    expected = ArchitectureCache(folder).read(base.config, base.tensors)
    (entry,) = folder.iterdir()
    entry.write_bytes(left)
    assert ArchitectureCache(folder).read(base.config, base.tensors) == expected
    assert sorted(json.loads(entry.read_bytes())["keys"]) == sorted(expected.keys)


def test_a_refusal_is_not_cached(folder: Path) -> None:
    cache = ArchitectureCache(folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not known to transformers"):
            cache.read({"model_type": "no-such-model"})
    assert not folder.exists()


def test_the_files_used_longest_ago_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, base: Checkpoint
) -> None:
    monkeypatch.setattr(known_architectures, "MAX_FILES", 2)
    kept: list[set[str]] = []
    for n_layers in (1, 2, 1, 3):
        ArchitectureCache(folder).read(base.config | {"num_hidden_layers": n_layers}, base.tensors)
        kept.append({file.name for file in folder.iterdir()})
        time.sleep(0.02)
    assert len(kept[-1]) == 2 and kept[0] < kept[-1], "the first was used again"


def test_a_full_disk_leaves_nothing_behind(base: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(temporary: Path, path: Path) -> None:
        assert temporary.exists()
        raise OSError("No space left on device")

    monkeypatch.setattr(caching.os, "replace", fail)
    assert ArchitectureCache(folder).read(base.config, base.tensors).owners and not list(folder.iterdir())


def test_a_known_architecture_needs_no_transformers(base: Checkpoint, folder: Path) -> None:
    """Importing transformers takes seconds, which is most of a small merge."""
    expected = ArchitectureCache(folder).read(base.config, base.tensors)
    code = (
        "import sys; from pathlib import Path; from sftm_app.weights.checkpoint import open_checkpoint as o;"
        "from sftm_app.architecture.known_architectures import ArchitectureCache as C;"
        "from sftm_app.architecture.opening import architecture_of;"
        f"found = architecture_of(o({str(base.path)!r}), C(Path({str(folder)!r})));"
        "print(len(found.owners), 'transformers' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(len(expected.owners)), "False"]


def test_a_cache_in_memory_asks_once_and_writes_nothing(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ArchitectureCache()
    first = cache.read(base.config, base.tensors)
    monkeypatch.setattr(reading, "read_architecture", refuse)
    monkeypatch.setattr(known_architectures, "write_text", refuse)
    assert cache.read(base.config, base.tensors) is first
    with pytest.raises(AssertionError, match="asked again"):
        ArchitectureCache().read(base.config, base.tensors)
