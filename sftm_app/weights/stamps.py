"""Names for what files hold, under which can be remembered what was found out about it, for as long as files stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.header import FileStamp

# What is written through a mapping reaches a file's times when the system gets to it, 30 s later as a rule on Linux.
SETTLED_NS = 60_000_000_000


def lasting_name(path: Path, stamp: FileStamp) -> str | None:
    """What no other content of any file of this machine is called, while the file at `path` is the one with this stamp.

    None where it is not, was changed only just now, or where the system has no such name. The time of the last change
    of a file's state (ctime), which programs cannot set, tells of changes that keep size and date; Windows has none,
    and on FAT and some network file systems it is the date.
    """
    if os.name == "nt":
        return None
    try:
        status, place = os.stat(path), path.resolve()
    except OSError:
        return None
    age_ns = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    if FileStamp(status.st_size, status.st_mtime_ns, status.st_ino) != stamp or age_ns < SETTLED_NS:
        return None
    return f"{place} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def lasting_tensor(checkpoint: Checkpoint, name: str) -> str | None:
    """The same for one tensor of a checkpoint."""
    file = lasting_name(checkpoint.files[name], checkpoint.stamps[checkpoint.files[name]])
    return None if file is None else f"{name} of {file}"
