"""One line that says when and where a figure was measured."""

from __future__ import annotations

import datetime
import os
import platform

import torch


def machine_line() -> str:
    """Date, processor count, Python, torch and its threads."""
    return (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} torch threads"
    )
