"""A run is a folder and a process: seen from everywhere, started once, stopped in time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sftm_app.errors import JobError
from sftm_app.jobs import workers as workers_module
from sftm_app.jobs.control import active_run, cancel, start
from sftm_app.jobs.folder import RunFolder, create_run, identity, list_runs, open_run, status, worker_process
from sftm_app.jobs.workers import search_path


def wait_for(folder: RunFolder, *states: str, limit_s: float = 60) -> str:
    deadline = time.monotonic() + limit_s
    while status(folder).state not in states:
        assert time.monotonic() < deadline, (status(folder), (folder.path / "worker.log").read_text())
        time.sleep(0.05)
    return status(folder).state


def test_run_is_merged_by_a_worker_and_can_be_read_by_anybody(tmp_path: Path, recipe_for: Callable) -> None:
    folder = start(tmp_path, recipe_for())
    assert status(folder).active
    with pytest.raises(JobError, match="running already"):
        start(tmp_path, recipe_for())
    again = open_run(tmp_path, folder.run_id)
    assert wait_for(again, "done", "failed", "died") == "done"
    assert (again.model / "model.safetensors").exists()
    assert again.report.exists()
    assert again.recipe() == recipe_for()
    done = status(again)
    assert (done.fraction, done.done) == (1.0, done.total)
    assert active_run(tmp_path) is None
    assert [run.run_id for run in list_runs(tmp_path)] == [folder.run_id]


def test_a_worker_takes_no_module_from_the_folder_it_is_started_in(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "random.py", "torch.py", "psutil.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    folder = start(Path("runs"), recipe_for("a"))  # a relative folder, too
    assert wait_for(folder, "done", "failed", "died") == "done"


def test_a_worker_finds_a_checkout_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(Path(workers_module.__file__).parents[2])
    for path in ([], ["", "relative"], [str(tmp_path)]):
        monkeypatch.setattr(sys, "path", path)
        assert search_path()[0] == home
        assert all(os.path.isabs(entry) for entry in search_path())
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", ["/usr/lib/python", home])
    assert search_path() == ["/usr/lib/python", home], "where this package lies stays, whatever the folder"


def test_refused_input_ends_as_a_sentence(tmp_path: Path, models: Path, recipe_for: Callable) -> None:
    recipe = recipe_for("ab")
    (models / "b" / "model.safetensors").write_bytes(b"12345")
    from sftm_app.merging.recipe import make_recipe

    folder = start(tmp_path, make_recipe(models / "base", [models / "a", models / "b"]))
    assert wait_for(folder, "failed", "died", "done") == "failed"
    assert "too few for a safetensors file" in status(folder).message
    assert not folder.model.exists()
    assert recipe.base != str(models / "base")


def test_cancel_stops_within_two_seconds_and_leaves_nothing(tmp_path: Path, recipe_for: Callable) -> None:
    folder = start(tmp_path, recipe_for())
    while not folder.events():
        time.sleep(0.02)
    process = worker_process(folder.events())
    asked = time.monotonic()
    cancel(folder)
    assert time.monotonic() - asked < 2.0
    assert status(folder).state in ("cancelled", "done")
    if status(folder).state == "cancelled":
        assert not list(folder.path.glob("model*"))
    time.sleep(0.2)
    assert process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_cancel_stops_a_worker_that_does_not_listen(tmp_path: Path, recipe_for: Callable) -> None:
    """A long factorisation sees neither the flag nor SIGTERM; only SIGKILL helps."""
    import subprocess
    import sys

    folder = create_run(tmp_path, recipe_for())
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    folder.append("started", pid=child.pid, process_started=psutil.Process(child.pid).create_time())
    folder.model.with_name("model.partial").mkdir()
    asked = time.monotonic()
    cancel(folder)
    assert time.monotonic() - asked < 2.0
    child.wait(1)
    assert not psutil.pid_exists(child.pid)
    assert status(folder).state == "cancelled"
    assert not list(folder.path.glob("model*"))


def test_a_worker_that_vanished_is_reported(tmp_path: Path, recipe_for: Callable) -> None:
    folder = create_run(tmp_path, recipe_for())
    folder.append("started", **identity(psutil.Process()))
    assert status(folder).state == "running"
    folder.events_file.unlink()
    folder.append("started", pid=os.getpid(), process_started=1.0)
    assert status(folder).state == "died"
    assert "No model was written" in status(folder).message


@pytest.mark.parametrize("run_id", ["../etc", "", "20260101-000000-zzzzzz", "20260101-000000-abcdef/.."])
def test_a_run_id_from_a_browser_is_checked(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(JobError, match="no run"):
        open_run(tmp_path, run_id)
