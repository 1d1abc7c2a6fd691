"""The folder of a run, read by anybody at any time, also after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sftm_app.errors import Cancelled, JobError
from sftm_app.jobs import workers as workers_module
from sftm_app.jobs.control import active_run, cancel, start
from sftm_app.jobs.events import Done, Event, Failed, Progressed, Started, WasCancelled
from sftm_app.jobs.folder import RunFolder, create_run, list_runs, open_run
from sftm_app.jobs.status import START_LIMIT_S, status
from sftm_app.jobs.worker import work
from sftm_app.jobs.workers import Workers
from sftm_app.output.progress import LAST_STEP
from sftm_app.session import Session


@pytest.fixture
def folder(tmp_path: Path, recipe_for: Callable) -> RunFolder:
    return create_run(tmp_path / "runs", recipe_for("ab"))


def progress(folder: RunFolder, done: int) -> None:
    folder.append(Progressed(done, 4, f"t{done}", done / 4, 1.0, 2.0))


def this_process() -> Started:
    return Started.by(psutil.Process())


# A process of this pid that started at another time has ended.
GONE = Started(os.getpid(), 1.0)


def test_the_states_of_a_run(folder: RunFolder) -> None:
    assert (status(folder).state, status(folder).active) == ("starting", True)
    folder.append(this_process())
    assert status(folder).message == "Reading the checkpoints"
    progress(folder, 1)
    now = status(folder)
    assert (now.state, now.fraction, now.done, now.total, now.message) == ("running", 0.25, 1, 4, "t1")
    folder.append(Failed("Because."))
    now = status(folder)
    assert (now.state, now.message, now.fraction, now.active) == ("failed", "Because.", 0.25, False)


def test_done_is_complete(folder: RunFolder) -> None:
    folder.append(this_process())
    progress(folder, 3)
    folder.append(Done())
    assert (status(folder).state, status(folder).fraction, status(folder).remaining_s) == ("done", 1.0, 0.0)


def test_a_worker_that_never_started(folder: RunFolder) -> None:
    long_ago = time.time() - START_LIMIT_S - 1
    os.utime(folder.path, (long_ago, long_ago))
    assert status(folder).state == "died"


def test_a_line_that_is_still_being_written_is_left_out(folder: RunFolder) -> None:
    folder.append(this_process())
    with open(folder.events_file, "a") as file:
        file.write('{"kind": "progr')
    assert folder.events() == [this_process()]


@pytest.mark.parametrize("torn", [b"\0\0\0\0", b'{"kind": "prog', b"\xff\xfe"])
def test_a_line_that_a_crash_tore_does_not_hide_the_others(folder: RunFolder, torn: bytes) -> None:
    folder.append(this_process())
    with open(folder.events_file, "ab") as file:
        file.write(torn + b"\n")
    folder.append(Done())
    assert status(folder).state == "done"


def test_the_worker_named_last_counts(folder: RunFolder) -> None:
    """A warm worker may turn out to be gone when the run is handed to it; then another one gets it."""
    folder.append(GONE)
    assert status(folder).state == "died"
    folder.append(this_process())
    assert status(folder).state == "running"


def test_a_run_of_version_0_1_0_is_read(folder: RunFolder) -> None:
    """Its events had the same names; the time left could be unknown."""
    lines = [
        {"kind": "started", "time": 1.0, "pid": 1, "process_started": 1.0},
        {"kind": "progress", "time": 2.0, "done": 1, "total": 1, "name": "a", "fraction": 1.0, "elapsed_s": 1.0}
        | {"remaining_s": None, "something": "else"},
        {"kind": "resumed", "time": 2.5},
        {"kind": "of another version", "time": 3.0},
        {"kind": "cancelled", "time": 4.0},
    ]
    folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    now = status(folder)
    assert (now.state, now.done, now.remaining_s, now.message) == ("cancelled", 1, None, "Cancelled.")


def test_cancelled_before_the_worker_looked(folder: RunFolder, session: Session) -> None:
    folder.cancel_flag.touch()
    work(folder, session)
    assert folder.events()[-1] == WasCancelled()
    assert not list(folder.path.glob("model*"))


def test_the_worker_writes_model_and_report(folder: RunFolder, session: Session) -> None:
    work(folder, session)
    *steps, last, done = folder.events()
    assert done == Done() and isinstance(last, Progressed) and last.name == LAST_STEP
    assert all(isinstance(step, Progressed) for step in steps) and len(steps) == status(folder).total > 10
    assert folder.report == folder.model / "sftm_report.json"
    assert json.loads(folder.report.read_text())["method"] == "sftm"
    assert sorted(path.name for path in folder.path.iterdir()) == ["events.jsonl", "model", "recipe.yaml"]


def test_a_cancel_at_the_last_step_is_heard(
    folder: RunFolder, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder.append

    def cancel_at_the_end(self: RunFolder, event: Event) -> None:
        append(self, event)
        if isinstance(event, Progressed) and event.name == LAST_STEP:
            self.cancel_flag.touch()

    monkeypatch.setattr(RunFolder, "append", cancel_at_the_end)
    work(folder, session)
    assert status(folder).state == "cancelled"
    assert not list(folder.path.glob("model*"))


def test_a_worker_killed_before_it_could_say_done_was_done(folder: RunFolder, session: Session) -> None:
    work(folder, session)
    kept = [event for event in folder.events() if isinstance(event, Progressed)]
    folder.events_file.unlink()
    for event in (GONE, *kept):
        folder.append(event)
    now = status(folder)
    assert (now.state, now.fraction, now.done) == ("done", 1.0, now.total)
    cancel(folder)
    assert folder.report.exists() and status(folder).state == "done"
    (folder.model / "model.safetensors").unlink()
    folder.report.unlink()
    assert status(folder).state == "died" and "No model was written" in status(folder).message


def test_a_signal_after_the_model_got_its_name_changes_nothing(
    folder: RunFolder, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftm_app.weights import partial

    sync = partial.sync_folder

    def stop(path: Path) -> None:
        sync(path)
        if path == folder.path:
            raise Cancelled("Cancelled.")

    monkeypatch.setattr(partial, "sync_folder", stop)
    work(folder, session)
    assert status(folder).state == "done" and folder.report.exists()


@pytest.mark.parametrize("error", [OSError(11, "Resource temporarily unavailable"), JobError("it ended at once")])
def test_a_worker_that_cannot_be_started_ends_the_run(
    tmp_path: Path, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(workers_module.Workers, "launch", fail)
    with pytest.raises(JobError, match=r"No worker process could be started \((Resource|it ended)"):
        start(tmp_path / "runs", recipe_for("a"), Workers())
    (run,) = list_runs(tmp_path / "runs")
    assert status(run).state == "failed" and "could be started" in status(run).message
    assert active_run(tmp_path / "runs") is None


def test_a_process_that_ends_at_once_is_noticed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.PIPE)
        process.wait()
        return process

    monkeypatch.setattr(workers_module, "_spawn", spawn)
    with pytest.raises(JobError, match="ended at once, with code 3"):
        workers_module.Workers().launch(folder)


def test_runs_of_others_are_left_out_and_an_unreadable_root_is_a_sentence(as_ordinary_user: Path) -> None:
    root = as_ordinary_user / "runs"
    for name in ("20260101-000000-aaaaaa", "20260301-000000-aaaaaa"):
        (root / name).mkdir(parents=True)
        (root / name / "events.jsonl").write_text("")
    (root / "20260301-000000-aaaaaa").chmod(0)
    assert [run.run_id[:8] for run in list_runs(root)] == ["20260101"]
    with pytest.raises(JobError, match="no run"):
        open_run(root, "20260301-000000-aaaaaa")
    root.chmod(0)
    with pytest.raises(JobError, match=r"runs: cannot be read \(Permission denied\)"):
        list_runs(root)
    assert list_runs(root.parent / "none") == []


def test_cancelling_what_is_over_changes_nothing(folder: RunFolder, session: Session) -> None:
    work(folder, session)
    before = folder.events()
    cancel(folder)
    assert folder.events() == before
    assert (folder.model / "model.safetensors").exists()
    assert not folder.cancel_flag.exists()


def test_runs_are_listed_newest_first(tmp_path: Path, recipe_for: Callable) -> None:
    for name in ("20260101-000000-aaaaaa", "20260301-000000-aaaaaa", "20260201-000000-ffffff", "notes", "x.partial"):
        (tmp_path / name).mkdir()
    assert [run.run_id[:8] for run in list_runs(tmp_path)] == ["20260301", "20260201", "20260101"]
    assert list_runs(tmp_path / "none") == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, recipe_for: Callable) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="cannot be written"):
        create_run(tmp_path / "file" / "runs", recipe_for("a"))


def wait_for_imports(process: psutil.Process) -> None:
    """Wait until a new process computes no more."""
    used, deadline = -1.0, time.monotonic() + 60
    while (now := sum(process.cpu_times()[:2])) > used or now < 0.5:
        assert time.monotonic() < deadline
        used = now
        time.sleep(0.3)


def test_a_warm_worker_that_fails_at_once_has_the_last_word(tmp_path: Path, models: Path) -> None:
    """It may be done before the process that handed the run over has taken a breath."""
    from sftm_app.planning.recipe import make_recipe

    (models / "a" / "model.safetensors").write_bytes(b"12345")
    recipe = make_recipe(models / "base", [models / "a"])
    workers = Workers()
    workers.prepare()
    try:
        assert workers._idle is not None
        wait_for_imports(psutil.Process(workers._idle.pid))
        folder = start(tmp_path / "runs", recipe, workers)
        deadline = time.monotonic() + 30
        while status(folder).active and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [event.kind for event in folder.events()] == ["started", "failed"] and status(folder).state == "failed"
        assert "too few for a safetensors file" in status(folder).message
    finally:
        workers.close()


def _flood(file: Path) -> None:
    with open(file, "wb") as stream:
        stream.truncate((256 << 20) + 1)


ODD_EVENTS: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda file: os.mkfifo(file),
    "a folder": lambda file: file.mkdir(),
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file),
    "not text": lambda file: file.write_bytes(bytes(range(256)) * 10),
    "too large": _flood,
    "deep": lambda file: file.write_text("[" * 100_000 + "\n"),
    "a huge pid": lambda file: file.write_text('{"kind": "started", "pid": 1' + "0" * 30 + ', "process_started": 1}\n'),
    "a pid of 0": lambda file: file.write_text('{"kind": "started", "pid": 0, "process_started": 1}\n'),
    "no number": lambda file: file.write_text('{"kind": "started", "pid": 1, "process_started": NaN}\n'),
    "beyond all bounds": lambda file: file.write_text(
        '{"kind": "progress", "done": 1e300, "total": -1, "name": "x", "fraction": 1e999, "elapsed_s": -5}\n'
    ),
    "another kind": lambda file: file.write_text('{"kind": "evil", "message": "x"}\n{}\n[]\nnull\n'),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
@pytest.mark.parametrize("kind", ODD_EVENTS)
def test_one_odd_run_neither_breaks_the_list_nor_blocks_new_ones(
    tmp_path: Path, recipe_for: Callable, kind: str
) -> None:
    """FAULTS C7: the folder of a run may hold anything after a crash, or because somebody wrote into it."""
    odd = tmp_path / "runs" / "20990101-000000-aaaaaa"
    odd.mkdir(parents=True)
    ODD_EVENTS[kind](odd / "events.jsonl")
    long_ago = time.time() - START_LIMIT_S - 1
    os.utime(odd, (long_ago, long_ago))
    good = create_run(tmp_path / "runs", recipe_for("a"))
    good.append(Done())
    started = time.monotonic()
    assert good.run_id in [run.run_id for run in list_runs(tmp_path / "runs")]
    for run in [*list_runs(tmp_path / "runs"), RunFolder(odd)]:
        assert status(run).state in ("done", "died")
    assert active_run(tmp_path / "runs") is None
    cancel(RunFolder(odd))
    with contextlib.suppress(JobError):
        cancel(open_run(tmp_path / "runs", odd.name))
    assert time.monotonic() - started < 5


def test_a_linked_folder_is_no_run(tmp_path: Path, folder: RunFolder) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder.path.rename(elsewhere)
    folder.path.symlink_to(elsewhere)
    assert list_runs(folder.path.parent) == []
    with pytest.raises(JobError, match="There is no run"):
        open_run(folder.path.parent, folder.run_id)
