"""Random sequences of what people, crashes and restarts do to the store of runs, against a model of it.

Reload, a second tab, a double click, cancel, resume, a killed worker, a restarted server, going back: in any order, at
most one run is active, every tab sees the same, and every run ends as the model says.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.faults.figures import Figure
from bench.faults.models import make_models, plain_session, recipe_of
from sftm_app.errors import JobError
from sftm_app.jobs import worker
from sftm_app.jobs.control import active_run, cancel, resume, start
from sftm_app.jobs.events import Started
from sftm_app.jobs.folder import RunFolder, list_runs, open_run
from sftm_app.jobs.status import status
from sftm_app.jobs.workers import Workers
from sftm_app.planning.recipe import Recipe
from sftm_app.session import Session

N_QUICK, N_FULL = 6, 200
STEPS = 12
PATIENCE_S = 20.0


class CopiedWorkers(Workers):
    """Workers that are copies of this process, which has done its imports."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def launch(self, folder: RunFolder) -> None:
        """Carry out a run in a copy of this process."""
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                import psutil

                folder.append(Started.by(psutil.Process()))
                signal.signal(signal.SIGTERM, worker._stopping(folder))
                worker.work(folder, self._session)
            os._exit(0)
        while not any(isinstance(event, Started) and event.pid == child for event in folder.events()):
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                break
            time.sleep(0.001)


def attack_chaos(quick: bool) -> Figure:
    """Run random sequences, each in a folder of its own."""
    n, session = N_QUICK if quick else N_FULL, plain_session()
    wrong: list[str] = []
    counts: dict[str, int] = {}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        root = Path(name)
        recipe = recipe_of(make_models(root / "models", side=48), method="sftm", measure="none")
        for index in range(n):
            sequence = _Sequence(root / f"runs{index}", recipe, CopiedWorkers(session), random.Random(index))
            for said in sequence.run():
                wrong.append(f"sequence {index}: {said} after {', '.join(sequence.done)}")
            for step in sequence.done:
                counts[step] = counts.get(step, 0) + 1
    note = ", ".join(f"{count} {step}" for step, count in sorted(counts.items()))
    return Figure("sequences of clicks, crashes and restarts", n, tuple(wrong), note)


class _Sequence:
    def __init__(self, runs: Path, recipe: Recipe, workers: Workers, generator: random.Random) -> None:
        self.runs, self.recipe, self.workers, self.generator = runs, recipe, workers, generator
        self.done: list[str] = []
        # What the model knows: how each run may have ended.
        self.allowed: dict[str, set[str]] = {}

    def run(self) -> list[str]:
        """Take the steps; returns what broke."""
        steps: tuple[Callable[[], None], ...] = (
            self.start, self.start, self.double_click, self.reload, self.cancel, self.cancel, self.resume, self.kill,
            self.wait,
        )  # fmt: skip
        wrong: list[str] = []
        for _ in range(STEPS):
            step = self.generator.choice(steps)
            self.done.append(step.__name__)
            try:
                step()
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
            wrong += self._look()
        self.wait()
        wrong += [f"{run.run_id} is still active" for run in list_runs(self.runs) if status(run).active]
        wrong += self._look()
        self._reap()
        return wrong

    def start(self) -> None:
        """Press Start."""
        before = active_run(self.runs)
        try:
            folder = start(self.runs, self.recipe, self.workers)
        except JobError:
            return
        if before is not None and status(before).active:
            raise AssertionError("a second run was started")
        self.allowed[folder.run_id] = {"done"}

    def double_click(self) -> None:
        """Press Start twice."""
        self.start()
        self.start()

    def reload(self) -> None:
        """Ask for everything anew, as another tab does."""
        for run in list_runs(self.runs):
            again = open_run(self.runs, run.run_id)
            first, second = status(run), status(again)
            if first.state != second.state and not first.active:
                raise AssertionError("two tabs see different states")

    def cancel(self) -> None:
        """Press Cancel on any run."""
        for run in self._some():
            if status(run).active:
                self.allowed[run.run_id] = {"cancelled", "done"}
            started = time.monotonic()
            cancel(run)
            if time.monotonic() - started > 2.5 or status(run).active:
                raise AssertionError("cancel did not stop the run")

    def resume(self) -> None:
        """Press Resume on any run."""
        for run in self._some():
            with contextlib.suppress(JobError):
                resume(run, self.workers)
                self.allowed[run.run_id] = {"done"}

    def kill(self) -> None:
        """The system kills the worker."""
        run = active_run(self.runs)
        pids = [event.pid for event in run.events() if isinstance(event, Started)] if run else []
        if run and pids:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pids[-1], signal.SIGKILL)
                os.waitpid(pids[-1], 0)  # it takes a moment to die
            self.allowed[run.run_id] |= {"died"}

    def wait(self) -> None:
        """Wait for the run."""
        deadline = time.monotonic() + PATIENCE_S
        while active_run(self.runs) is not None and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)

    def _some(self) -> list[RunFolder]:
        runs = list_runs(self.runs)
        return [self.generator.choice(runs)] if runs else []

    def _look(self) -> list[str]:
        """What contradicts the model now."""
        self._reap()
        wrong: list[str] = []
        states = {run.run_id: status(run) for run in list_runs(self.runs)}
        active = [run_id for run_id, now in states.items() if now.active]
        if len(active) > 1:
            wrong.append(f"{len(active)} runs are active")
        for run_id, now in states.items():
            if not now.active and now.state not in self.allowed[run_id]:
                wrong.append(f"{run_id} is {now.state} ({now.message[:80]}), expected {self.allowed[run_id]}")
            model = self.runs / run_id / "model"
            if (now.state == "done") != model.is_dir() and not now.active:
                wrong.append(f"{run_id} is {now.state}, and its model is {'there' if model.is_dir() else 'missing'}")
        return wrong

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
