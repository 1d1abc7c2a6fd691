"""The process that carries out one run; see sftm_app.jobs.workers for who starts it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from sftm_app.errors import Cancelled, SFTMError
from sftm_app.jobs.folder import RunFolder


def work(folder: RunFolder) -> None:
    """Carry out the run of a folder; every end is an event."""
    try:
        _merge(folder)
    except Cancelled:
        # SIGTERM may come after the model got its name; then nothing is left to be stopped.
        folder.append("done" if folder.report.is_file() else "cancelled")
    except SFTMError as error:
        folder.append("failed", message=str(error))
    except BaseException as error:
        folder.append("failed", message=f"Unexpected {type(error).__name__}; worker.log in the run's folder has more.")
        raise
    else:
        folder.append("done")


def _merge(folder: RunFolder) -> None:
    from sftm_app.output.save import save
    from sftm_app.pipeline import prepare
    from sftm_app.session import open_session

    if folder.cancel_flag.exists():
        raise Cancelled("Cancelled.")
    # What lies in a run's own folder can only be what an earlier worker of the same run left.
    session = open_session()
    steps = save(prepare(folder.recipe(), session), session, folder.model, resume=True)
    while True:
        if folder.cancel_flag.exists():
            steps.close()
            raise Cancelled("Cancelled.")
        try:
            progress = next(steps)
        except StopIteration:
            return
        folder.append("progress", **vars(progress))


def _stopping(folder: RunFolder) -> Callable[[int, FrameType | None], None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        if folder.cancel_flag.exists():
            raise Cancelled("Cancelled.")
        # Nobody cancelled: the machine shuts down. As after a power cut, what is finished stays to be resumed.
        os._exit(128 + signal_number)

    return stop


def main() -> None:
    """Import what takes long, then wait to be told the run's folder (a JSON text on standard input)."""
    import sftm_app.output.save  # noqa: F401
    from sftm_app.architecture.architecture import preload

    preload()
    line = sys.stdin.readline()
    if not line:
        return
    folder = RunFolder(Path(json.loads(line)))
    log = os.open(folder.path / "worker.log", os.O_WRONLY | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGTERM, _stopping(folder))
    work(folder)


if __name__ == "__main__":
    main()
