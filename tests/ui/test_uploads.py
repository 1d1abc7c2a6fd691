"""Uploads lie in a private folder, and what is old or broke off does not stay. (FAULTS D4, C9)"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sftm_app.errors import OutputError
from sftm_app.ui.uploads import KEPT_S, UNFINISHED_S, make_uploads, remove_old


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_nobody_else_may_look_into_it(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "uploads").mkdir(mode=0o777)
        folder = make_uploads(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "uploads").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link"):
        make_uploads(tmp_path)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


def test_only_what_is_old_and_ours_is_removed(tmp_path: Path) -> None:
    folder = make_uploads(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("mine")
    names = ["a" * 64, "b" * 64, "mine"]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(b"x")
    (folder / ("c" * 64)).symlink_to(outside)
    (folder / ("d" * 64)).mkdir()
    for name in ("tmpabcd1234", "tmpnew_5678", "notes.txt"):
        (folder / name).write_bytes(b"")
    now = folder.stat().st_mtime + 10
    for path in [path for path in folder.rglob("*") if "b" * 64 not in str(path) and path.name != "tmpnew_5678"]:
        os.utime(path, (now - KEPT_S - 1,) * 2, follow_symlinks=False)
    os.utime(folder / ("b" * 64), (now - UNFINISHED_S - 1,) * 2)
    remove_old(folder, now)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["b" * 64, "c" * 64, "mine", "notes.txt", "tmpnew_5678"]
    )
    assert (outside / "thesis.txt").read_text() == "mine"
    assert (folder / ("b" * 64) / "x.png").exists() and (folder / "mine" / "x.png").exists()
