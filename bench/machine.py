"""One line that states when and where a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform

import torch


def machine_line(n_threads: int | None = None) -> str:
    """The date, the processors, and the versions of Python and torch.

    Args:
        n_threads: the threads of the processes that were measured; those of this process by default.
    """
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"{n_threads or torch.get_num_threads()} torch threads"
    )
