"""Nothing is deleted that this app did not write, and an output that is replaced is there until the new one is.

FAULTS C6, C8, C9.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sftm_app.cli import main
from sftm_app.errors import OutputError
from sftm_app.output.publish import publish
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.recipe import recipe_to_yaml
from sftm_app.session import Session
from sftm_app.weights import partial as partial_module
from sftm_app.weights.partial import WORK_FILES, is_live, output_folder, partial_of, remove_partial

STALE = json.dumps({"pid": os.getpid(), "started": 1.0})


@pytest.fixture
def run(recipe_for: Callable[..., Any], session: Session) -> Callable[..., None]:
    """Merge into a folder."""

    def run(output: Path, scaling: float = 1.0, **options: Any) -> None:
        recipe = recipe_for("a", method="task_arithmetic", params={"scaling": scaling})
        for _ in save(prepare(recipe, session), session, output, **options):
            pass

    return run


def test_a_link_to_a_folder_with_a_stale_lock_is_left_alone(tmp_path: Path, run: Callable[..., None]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (mine / "lock.json").write_text(STALE)
    (tmp_path / "out.partial").symlink_to(mine)
    for _ in range(2):
        with pytest.raises(OutputError, match="was not left by a merge"):
            run(tmp_path / "out")
    remove_partial(tmp_path / "out.partial")
    assert (mine / "thesis.txt").read_text() == "mine" and (tmp_path / "out.partial").is_symlink()


LOCKS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_text(""),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 4000),
    "huge pid": lambda path: path.write_text(json.dumps({"pid": 10**30, "started": 1})),
    "pid 2^31": lambda path: path.write_text(json.dumps({"pid": 2**31, "started": 1})),
    "negative pid": lambda path: path.write_text(json.dumps({"pid": -1, "started": 1})),
    "pid as text": lambda path: path.write_text(json.dumps({"pid": "1", "started": 1})),
    "true": lambda path: path.write_text(json.dumps({"pid": True, "started": 1})),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "megabytes": lambda path: path.write_text(" " * 10_000_000 + STALE),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a lock": lambda path: (
        path.with_name("other").write_text(STALE),
        path.symlink_to(path.with_name("other")),
    ),
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", LOCKS)
def test_what_is_no_lock_marks_nothing_as_ours(tmp_path: Path, kind: str) -> None:
    if kind == "a pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("POSIX")
    folder = tmp_path / "out.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    LOCKS[kind](folder / "lock.json")
    started = time.perf_counter()
    assert not is_live(folder / "lock.json")
    with pytest.raises(OutputError, match="was not left by a merge"), output_folder(tmp_path / "out"):
        raise AssertionError("claimed")
    assert time.perf_counter() - started < 2
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_run_that_died_over_its_lock_is_recovered(tmp_path: Path, run: Callable[..., None]) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "lock.json.0123456789abcdef.tmp").write_text('{"pi')
    run(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_links_in_a_partial_folder_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("mine")
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "out") as partial:
        (partial / "heads").symlink_to(outside)
        (partial / "deep").mkdir()
        (partial / "deep" / "link").symlink_to(outside)
        raise ZeroDivisionError
    assert (outside / "thesis.txt").read_text() == "mine" and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("when", "number"), [("unlink", 1), ("unlink", 2), ("rename", 1)])
def test_a_complete_output_never_holds_work_files(
    tmp_path: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, when: str, number: int
) -> None:
    """Killed at any point around the rename: the output is absent, and the next run gets through."""

    class Killed(BaseException):
        pass

    partial, calls, original = tmp_path / "out.partial", [0], getattr(Path, when)

    def kill(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == partial or (self.parent == partial and self.name in WORK_FILES):
            calls[0] += 1
            if calls[0] == number:
                raise Killed
        return original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, when, kill)
        # A killed process cleans nothing up.
        patch.setattr(partial_module, "remove_partial", lambda partial: None)
        with pytest.raises(Killed):
            run(tmp_path / "out")
    assert not (tmp_path / "out").exists() and partial.is_dir()
    if (partial / "lock.json").exists():  # this process is the one that was killed
        (partial / "lock.json").write_text(STALE)
    run(tmp_path / "out", resume=False)
    assert not set(WORK_FILES) & {path.name for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_is_replaced_once_the_new_one_is_complete(tmp_path: Path, run: Callable[..., None]) -> None:
    run(tmp_path / "out")
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        run(tmp_path / "out", 0.5)
    run(tmp_path / "out", 0.5, replace=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    run(tmp_path / "new", replace=True)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == first


def test_what_others_wrote_is_never_replaced(tmp_path: Path, run: Callable[..., None], tiny_models: Path) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"did not write \(notes.txt\)"):
        run(tmp_path / "out", replace=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="was not written by this app"):
        run(tmp_path / "folder", replace=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(OutputError, match="was not written by this app"):
        run(tmp_path / "link", replace=True)
    for inside in (tiny_models / "base", tiny_models / "a" / "out", tiny_models):
        with pytest.raises(OutputError, match=r"is inside the input|holds the input"):
            run(inside, replace=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_the_old_output_as_it_was(
    tmp_path: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == partial_of(tmp_path / "out"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="writing failed"):
        run(tmp_path / "out", 0.5, replace=True)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_put_aside_by_a_killed_run_comes_back(tmp_path: Path, run: Callable[..., None]) -> None:
    run(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.replaced")
    with pytest.raises(OutputError, match="exists already"):
        run(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    # Killed after both renames: the old one is still aside.
    run(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "out.replaced")
    run(tmp_path / "out", 0.5, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_on_one_output_and_a_live_lock(tmp_path: Path, run: Callable[..., None]) -> None:
    with output_folder(tmp_path / "out") as partial:
        lock = json.loads((partial / "lock.json").read_text())
        assert lock == {"pid": os.getpid(), "started": psutil.Process().create_time()}
        with pytest.raises(OutputError, match="another run is writing it"):
            run(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_publishing_leaves_no_work_files_either(tmp_path: Path, run: Callable[..., None]) -> None:
    run(tmp_path / "out")
    publish(tmp_path / "out", tmp_path / "saved")
    names = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert sorted(path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*")) == names


def test_the_command_line_replaces_when_it_is_asked(
    tmp_path: Path, recipe_for: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe_for("a", method="average")))
    merge = ["merge", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--quiet"]
    for options, code in (([], 0), ([], 2), (["--replace"], 0)):
        with pytest.raises(SystemExit) as ended:
            main([*merge, *options])
        assert ended.value.code == code
    assert "exists already" in capsys.readouterr().err
