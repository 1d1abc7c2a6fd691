"""Real runs in worker processes, cancelled at random moments: each stops within two seconds and leaves nothing."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import psutil

from bench.faults.figures import Figure
from bench.faults.models import make_models, recipe_of
from sftm_app.jobs.control import cancel, start
from sftm_app.jobs.events import Started
from sftm_app.jobs.status import status
from sftm_app.jobs.workers import Workers

N_QUICK, N_FULL = 2, 100
LIMIT_S = 2.0


def attack_cancels(quick: bool) -> Figure:
    """Start a run, wait a random while, cancel it, and look for what is left."""
    generator, n = random.Random(0), N_QUICK if quick else N_FULL
    wrong: list[str] = []
    taken: list[float] = []
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        root, workers = Path(name), Workers()
        files = make_models(root / "models", n_tasks=4, side=256)
        for index in range(n):
            folder = start(root / "runs", recipe_of(files, method="sftm", measure="all"), workers)
            waited = time.monotonic() + generator.uniform(0.0, 8.0)
            while status(folder).active and time.monotonic() < waited:
                time.sleep(0.02)
            was_active = status(folder).active
            started = time.monotonic()
            cancel(folder)
            taken.append(time.monotonic() - started)
            now = status(folder)
            if now.active or (was_active and now.state not in ("cancelled", "done")):
                wrong.append(f"cancel {index}: the run is {now.state} afterwards")
            if now.state == "cancelled" and list(folder.path.glob("model*")):
                wrong.append(f"cancel {index}: leaves {[path.name for path in folder.path.glob('model*')]}")
            pids = [event.pid for event in folder.events() if isinstance(event, Started)]
            deadline = time.monotonic() + LIMIT_S
            while any(map(_lives, pids)) and time.monotonic() < deadline:
                time.sleep(0.02)
            if any(map(_lives, pids)):
                wrong.append(f"cancel {index}: its process still runs")
    taken.sort()
    slow = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
    if slow > LIMIT_S:
        wrong.append(f"the 99th percentile is {slow:.2f} s")
    return Figure("cancels at random moments", n, tuple(wrong), f"p99 {slow:.2f} s, slowest {taken[-1]:.2f} s")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
