"""Names for what files hold: the same while nothing touches them, another whenever something might have."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sftm_app.weights import hashing
from sftm_app.weights import stamps as lasting
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.hashing import hash_files, hash_name
from sftm_app.weights.header import FileStamp
from sftm_app.weights.stamps import lasting_name, lasting_tensor

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no time of a file's state")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lasting, "SETTLED_NS", 0)
    path = tmp_path / "file"
    path.write_bytes(b"first")
    return path


def name_of(path: Path) -> str | None:
    return lasting_name(path, FileStamp.of(path))


def test_a_file_keeps_its_name_until_it_is_written_though_size_and_date_stay(file: Path) -> None:
    before, status, stamp = name_of(file), os.stat(file), FileStamp.of(file)
    assert before is not None and name_of(file) == before
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert FileStamp.of(file) == stamp and name_of(file) not in (before, None)


def test_another_file_in_its_place_has_another_name(file: Path) -> None:
    before, status = name_of(file), os.stat(file)
    other = file.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert name_of(file) not in (before, None)


def test_a_file_of_just_now_has_no_name_yet(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "SETTLED_NS", 3_600_000_000_000)
    assert name_of(file) is None
    # Nor has one with an old date that came here only now.
    os.utime(file, ns=(0, 0))
    assert name_of(file) is None


def test_a_file_that_is_gone_or_another_than_was_opened_has_no_name(file: Path) -> None:
    stamp = FileStamp.of(file)
    file.write_bytes(b"longer than before")
    assert lasting_name(file, stamp) is None
    file.unlink()
    assert lasting_name(file, stamp) is None


def test_each_tensor_has_its_own(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "SETTLED_NS", 0)
    checkpoints = [open_checkpoint(models / name) for name in ("base", "a")]
    names = [lasting_tensor(checkpoint, name) for checkpoint in checkpoints for name in checkpoint.tensors]
    assert None not in names and len(set(names)) == len(names)


def test_a_known_hash_is_not_made_again_and_one_of_a_changed_file_is(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "SETTLED_NS", 0)
    known: dict[str, str] = {}
    made = []
    real = hashing._hash
    monkeypatch.setattr(hashing, "_hash", lambda path, *rest: (made.append(path), real(path, *rest))[1])

    def recall(about: str, make: object) -> str:
        known[about] = known.get(about) or make()  # type: ignore[operator]
        return known[about]

    first = hash_files(open_checkpoint(models / "a"), recall=recall)
    assert (
        hash_files(open_checkpoint(models / "a"), recall=recall) == first == hash_files(open_checkpoint(models / "a"))
    )
    assert len(made) == 2  # once to be remembered, once by the call that remembers nothing
    file = next(iter(open_checkpoint(models / "a").stamps))
    status, raw = os.stat(file), bytearray(file.read_bytes())
    raw[-1] ^= 1
    time.sleep(0.02)
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_files(open_checkpoint(models / "a"), recall=recall) != first and len(known) == 2


def test_a_hash_is_remembered_for_files_that_have_settled(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((path, stamp),) = open_checkpoint(models / "a").stamps.items()
    monkeypatch.setattr(lasting, "SETTLED_NS", 10**19)
    assert hash_name(path, stamp) is None
    monkeypatch.setattr(lasting, "SETTLED_NS", 0)
    assert str(hash_name(path, stamp)).startswith("SHA-256 of ")


def test_where_a_file_s_state_has_no_time_it_has_no_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = FileStamp.of(file)
    monkeypatch.setattr(lasting.os, "name", "nt")
    found = lasting_name(file, stamp)
    monkeypatch.undo()
    assert found is None
