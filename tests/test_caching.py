"""The place of caches on disk, and atomic writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sftm_app import caching
from sftm_app.caching import cache_place, default_folder, replacing, write_text
from sftm_app.errors import InputError


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    here = cache_place({"SFTM_CACHE_DIR": str(tmp_path), "SFTM_CACHE_GB": "0.5"})
    assert here is not None and (here.folder, here.limit_bytes) == (tmp_path, 500_000_000)
    usual = cache_place({})
    assert usual is not None and (usual.folder, usual.limit_bytes) == (default_folder(), 10_000_000_000)
    assert cache_place({"SFTM_CACHE_GB": "0"}) is None
    for wrong in ("many", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="not a number of gigabytes"):
            cache_place({"SFTM_CACHE_GB": wrong})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="the custom of Linux")
def test_the_default_folder_is_the_user_s_folder_for_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = Path("sftm-studio") / "factors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / below
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert default_folder() == Path.home() / ".cache" / below


def test_without_a_home_folder_there_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(caching.platformdirs, "user_cache_path", refuse)
    assert cache_place({}) is None
    assert cache_place({"SFTM_CACHE_DIR": str(tmp_path)}) is not None


@pytest.mark.parametrize("sync", [False, True])
def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "secönd"):
        write_text(path, text, sync)
        assert path.read_text("utf-8") == text and list(path.parent.iterdir()) == [path]

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(caching.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "third", sync)
    assert path.read_text("utf-8") == "secönd" and list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_replaces_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())
