"""A run is a folder and a process: seen from everywhere, started once, stopped in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_checkpoints import change_weights

from sftm_app.errors import JobError
from sftm_app.jobs import worker
from sftm_app.jobs import workers as workers_module
from sftm_app.jobs.control import active_run, cancel, resume, start
from sftm_app.jobs.events import Event, Progressed, Started
from sftm_app.jobs.folder import RunFolder, create_run, list_runs, open_run
from sftm_app.jobs.status import status, worker_process
from sftm_app.jobs.workers import Workers
from sftm_app.planning.recipe import make_recipe
from sftm_app.processes import search_path
from sftm_app.session import Session

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")


def wait_for(folder: RunFolder, *states: str, limit_s: float = 60) -> str:
    deadline = time.monotonic() + limit_s
    while status(folder).state not in states:
        assert time.monotonic() < deadline, (status(folder), (folder.path / "worker.log").read_text())
        time.sleep(0.05)
    return status(folder).state


def test_run_is_merged_by_a_worker_and_can_be_read_by_anybody(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker takes no module from the folder that it is started in.
    for name in ("json.py", "random.py", "torch.py", "psutil.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    runs = Path("runs")  # a relative folder, too
    folder = start(runs, recipe_for(), Workers())
    assert status(folder).active
    with pytest.raises(JobError, match="running already"):
        start(runs, recipe_for(), Workers())
    again = open_run(runs, folder.run_id)
    assert wait_for(again, "done", "failed", "died") == "done"
    assert (again.model / "model.safetensors").exists()
    assert again.report.exists()
    assert again.recipe() == recipe_for()
    done = status(again)
    assert (done.fraction, done.done) == (1.0, done.total)
    assert active_run(runs) is None
    assert [run.run_id for run in list_runs(runs)] == [folder.run_id]


def test_a_worker_finds_a_checkout_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(Path(workers_module.__file__).parents[2])
    for path in ([], ["", "relative"], [str(tmp_path)]):
        monkeypatch.setattr(sys, "path", path)
        assert search_path()[0] == home
        assert all(os.path.isabs(entry) for entry in search_path())
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", ["/usr/lib/python", home])
    assert search_path() == ["/usr/lib/python", home], "where this package lies stays, whatever the folder"


@needs_fork
def test_refused_input_ends_as_a_sentence(tmp_path: Path, models: Path, recipe_for: Callable, session: Session) -> None:
    recipe = recipe_for("ab")
    (models / "b" / "model.safetensors").write_bytes(b"12345")
    workers = Forks(session)
    folder = start(tmp_path, make_recipe(models / "base", [models / "a", models / "b"]), workers)
    workers.wait()
    assert status(folder).state == "failed"
    assert "too few for a safetensors file" in status(folder).message
    assert not folder.model.exists()
    assert recipe.base != str(models / "base")


def test_cancel_stops_within_two_seconds_and_leaves_nothing(tmp_path: Path, recipe_for: Callable) -> None:
    folder = start(tmp_path, recipe_for(), Workers())
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
    folder = create_run(tmp_path, recipe_for())
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    folder.append(Started.by(psutil.Process(child.pid)))
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
    folder.append(Started.by(psutil.Process()))
    assert status(folder).state == "running"
    folder.events_file.unlink()
    folder.append(Started(os.getpid(), 1.0))
    assert status(folder).state == "died"
    assert "No model was written" in status(folder).message


@pytest.mark.parametrize("run_id", ["../etc", "", "20260101-000000-zzzzzz", "20260101-000000-abcdef/.."])
def test_a_run_id_from_a_browser_is_checked(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(JobError, match="no run"):
        open_run(tmp_path, run_id)


class Forks(Workers):
    """Workers that are copies of this process, which has done its imports. `seen` is called after every event."""

    def __init__(self, session: Session, seen: Callable[[int], None] = lambda count: None) -> None:
        super().__init__()
        self.session, self.seen = session, seen
        self.child = 0

    def launch(self, folder: RunFolder) -> None:
        ready, go = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.read(ready, 1)
            append, count = RunFolder.append, [0]

            def watched(self_: RunFolder, event: Event) -> None:
                append(self_, event)
                count[0] += 1
                self.seen(count[0])

            RunFolder.append = watched  # type: ignore[method-assign]
            signal.signal(signal.SIGTERM, worker._stopping(folder))
            try:
                worker.work(folder, self.session)
            finally:
                os._exit(0)
        folder.append(Started.by(psutil.Process(self.child)))
        os.write(go, b".")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def killed_after(folder: RunFolder, session: Session, n: int) -> None:
    """The run is begun, and its process killed after `n` tensors."""

    def seen(count: int) -> None:
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    workers = Forks(session, seen)
    workers.launch(folder)
    assert workers.wait() == -signal.SIGKILL


@needs_fork
def test_a_killed_run_is_resumed_in_its_own_folder(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    whole = create_run(tmp_path, recipe_for())
    worker.work(whole, session)
    folder = create_run(tmp_path, recipe_for())
    killed_after(folder, session, 12)
    now = status(folder)
    assert (now.state, now.done, now.resumable) == ("died", 12, True)
    assert "Finished tensors are kept: resume the merge, or start it again" in now.message
    with open(folder.events_file, "a") as file:
        file.write('{"kind": "progr')  # torn by the crash
    folder.cancel_flag.touch()
    long_ago = time.time() - 1000
    for day in range(8):  # runs with later names, which are over
        other = tmp_path / f"29990101-00000{day}-aaaaaa"
        other.mkdir()
        os.utime(other, (long_ago, long_ago))
    workers = Forks(session, lambda count: time.sleep(0.02))
    resume(folder, workers)
    assert active_run(tmp_path) == folder
    with pytest.raises(JobError, match="Nothing is left"):
        resume(folder, workers)
    with pytest.raises(JobError, match="running already"):
        start(tmp_path, recipe_for(), Workers())
    assert workers.wait() == 0 and status(folder).state == "done"
    assert (folder.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    done = [event.done for event in folder.events() if isinstance(event, Progressed)]
    assert done == [*range(1, 13), *range(12, done[-1] + 1), done[-1]]
    assert not status(folder).resumable
    with pytest.raises(JobError, match="Nothing is left of this run"):
        resume(folder, workers)


@needs_fork
def test_a_run_whose_input_changed_is_not_resumed_and_keeps_what_it_has(
    tmp_path: Path, models: Path, session: Session
) -> None:
    recipe = make_recipe(models / "base", [models / "a", models / "b"], device="cpu")
    folder = create_run(tmp_path / "runs", recipe)
    killed_after(folder, session, 12)
    change_weights(models / "a" / "model.safetensors", lambda tensors: tensors["vit.layernorm.weight"].mul_(2))
    workers = Forks(session)
    resume(folder, workers)
    workers.wait()
    assert status(folder).state == "failed"
    assert "a/model.safetensors" in status(folder).message and status(folder).resumable


@needs_fork
@pytest.mark.parametrize("how", ["stopped by the system", "cancelled"])
def test_a_run_stopped_on_its_way(tmp_path: Path, recipe_for: Callable, session: Session, how: str) -> None:
    folder = create_run(tmp_path, recipe_for())
    workers = Forks(session, lambda count: time.sleep(0.05))
    workers.launch(folder)
    while status(folder).done < 3:
        time.sleep(0.01)
    if how == "stopped by the system":
        os.kill(workers.child, signal.SIGTERM)
        assert workers.wait() == 128 + signal.SIGTERM
        assert status(folder).state == "died"
    else:
        asked = time.monotonic()
        cancel(folder)
        assert time.monotonic() - asked < 2.0
        assert status(folder).state == "cancelled"
        assert not psutil.pid_exists(workers.child) or workers.wait() in (0, -signal.SIGKILL)
    assert status(folder).resumable == (how != "cancelled")
    if how == "cancelled":
        assert list(folder.path.glob("model*")) == []
        return
    resume(folder, workers := Forks(session))
    workers.wait()
    assert status(folder).state == "done"
    assert json.loads(folder.report.read_text())["machine"]["resumed_after_tensors"] >= 3


@needs_fork
def test_of_many_hands_on_the_button_one_starts_the_run(tmp_path: Path, recipe_for: Callable, session: Session) -> None:
    folder = create_run(tmp_path, recipe_for())
    killed_after(folder, session, 12)
    said: list[str] = []
    workers = Forks(session, lambda count: time.sleep(0.05))

    def press() -> None:
        try:
            resume(folder, workers)
        except JobError as error:
            said.append(str(error))

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3
    workers.wait()
    assert status(folder).state == "done"
    assert sum(isinstance(event, Started) for event in folder.events()) == 2
