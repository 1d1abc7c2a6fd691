"""Delete a run and its model: only what this app wrote."""

from __future__ import annotations

import os

from sftm_app.errors import JobError
from sftm_app.jobs.folder import RECIPE_NAME, RunFolder
from sftm_app.jobs.status import status
from sftm_app.output.removal import remove_output

LOG_NAME = "worker.log"


def delete_run(run: RunFolder) -> None:
    """Delete a finished run.

    Raises:
        JobError: it is running, its folder holds other files, or it cannot be removed.
        OutputError: the model holds files that this app did not write, see `remove_output`.
    """
    if status(run).active:
        raise JobError("This merge is still running. Cancel it first.")
    if run.path.is_symlink():
        raise JobError(f"{run.path}: is a link, so it is not deleted. Remove it yourself.")
    # The recipe goes last: without it, nobody could say what the rest is.
    own = [run.events_file.name, LOG_NAME, run.cancel_flag.name, RECIPE_NAME]
    try:
        other = sorted({*os.listdir(run.path)} - {*own, run.model.name})
        if other:
            named = ", ".join(other[:3])
            raise JobError(f"{run.path}: holds files that this app did not write ({named}). Move them away first.")
        if os.path.lexists(run.model):
            remove_output(run.model)
        for name in own:
            (run.path / name).unlink(missing_ok=True)
        run.path.rmdir()
    except OSError as error:
        raise JobError(f"{run.path}: cannot be deleted ({error.strerror}). Remove it yourself.") from None
