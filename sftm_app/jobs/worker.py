"""The process that carries out one run; sftm_app.jobs.workers starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from sftm_app.errors import Cancelled, SFTMError
from sftm_app.jobs.events import Done, Failed, Progressed, WasCancelled
from sftm_app.jobs.folder import RunFolder
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.processes import stay_offline
from sftm_app.session import Session, open_session


def work(folder: RunFolder, session: Session) -> None:
    """Carry out the run of a folder. However it ends, the last event says so."""
    try:
        _merge(folder, session)
    except Cancelled:
        # SIGTERM may come after the model got its name; then nothing is left to stop.
        folder.append(Done() if folder.report.is_file() else WasCancelled())
    except SFTMError as error:
        folder.append(Failed(str(error)))
    except BaseException as error:
        folder.append(Failed(f"Unexpected {type(error).__name__}. See worker.log in the run's folder."))
        raise
    else:
        folder.append(Done())


def _merge(folder: RunFolder, session: Session) -> None:
    _stop_if_cancelled(folder)
    plan = prepare(folder.recipe(), session)
    # What is in a run's own folder can only come from an earlier worker of the same run.
    steps = save(plan, session, folder.model, resume=True)
    try:
        for progress in steps:
            folder.append(Progressed.to(progress))
            _stop_if_cancelled(folder)
    finally:
        steps.close()


def _stop_if_cancelled(folder: RunFolder) -> None:
    if folder.cancel_flag.exists():
        raise Cancelled("Cancelled.")


def _stopping(folder: RunFolder) -> Callable[[int, FrameType | None], None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        _stop_if_cancelled(folder)
        # Nobody cancelled: the machine shuts down. As after a power cut, finished tensors stay to be resumed.
        os._exit(128 + signal_number)

    return stop


def main() -> None:
    """Wait for the run's folder (a JSON text on standard input), and carry it out. The imports are done before."""
    stay_offline()
    line = sys.stdin.readline()
    if not line:
        return
    folder = RunFolder(Path(json.loads(line)))
    log = os.open(folder.path / "worker.log", os.O_WRONLY | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGTERM, _stopping(folder))
    work(folder, open_session())


if __name__ == "__main__":
    main()
