"""The worker process of one run: `python -m sftm_app.jobs.worker RUN_FOLDER`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from sftm_app.errors import Cancelled, SFTMError
from sftm_app.jobs.folder import RunFolder, own_identity


def work(folder: RunFolder) -> None:
    """Carry out the run of a folder; every end is an event."""
    folder.append("started", **own_identity())
    try:
        _merge(folder)
    except Cancelled:
        folder.append("cancelled")
    except SFTMError as error:
        folder.append("failed", message=str(error))
    except BaseException as error:
        folder.append("failed", message=f"Unexpected {type(error).__name__}; worker.log in the run's folder has more.")
        raise
    else:
        folder.append("done")


def _merge(folder: RunFolder) -> None:
    # Imported here: torch takes seconds to load, and a run that was cancelled meanwhile need not wait for it.
    if folder.cancel_flag.exists():
        raise Cancelled("Cancelled.")
    from sftm_app.merging.plan import make_plan
    from sftm_app.merging.save import save

    steps = save(make_plan(folder.recipe()), folder.model)
    while True:
        if folder.cancel_flag.exists():
            steps.close()
            raise Cancelled("Cancelled.")
        try:
            progress = next(steps)
        except StopIteration as end:
            folder.report.write_text(end.value.to_json(), encoding="utf-8")
            return
        folder.append("progress", **vars(progress))


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise Cancelled("Cancelled.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    work(RunFolder(Path(sys.argv[1])))
