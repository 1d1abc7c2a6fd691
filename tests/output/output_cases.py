"""Runs of `save`, whole or killed, and what they leave."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sftm_app.output.executors import Executor
from sftm_app.output.progress import Progress
from sftm_app.output.report import Report
from sftm_app.output.save import save
from sftm_app.planning.plan import Plan
from sftm_app.session import Session

SHARDED = {"max_shard_size": "6KB"}


def finish(
    plan: Plan, session: Session, output: Path, resume: bool | None = None, executor: Executor | None = None
) -> tuple[Report, list[Progress]]:
    """Save to the end."""
    steps, seen = save(plan, session, output, resume, executor), []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return end.value, seen


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_killed_process(work: Callable[[], object]) -> None:
    """Do the work in a copy of this process, which something in it kills by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)  # nothing killed it
    _, how = os.waitpid(child, 0)
    assert os.WIFSIGNALED(how) and os.WTERMSIG(how) == signal.SIGKILL


def killed_after(
    n: int, plan: Plan, session: Session, output: Path, resume: bool | None = None, executor: Executor | None = None
) -> None:
    """Save in a process that is killed after n steps."""

    def work() -> None:
        steps = save(plan, session, output, resume, executor)
        for _ in range(n):
            next(steps)
        die()

    in_a_killed_process(work)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of an output, without times, memory, workers and what was resumed."""
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    found.pop("README.md")
    report = json.loads(found.pop("sftm_report.json"))
    for key in ("created", "seconds"):
        report.pop(key)
    report["machine"] = {key: report["machine"][key] for key in ("device", "torch", "threads")}
    for record in report["tensors"]:
        record.pop("seconds")
    return found | {"report": report}
