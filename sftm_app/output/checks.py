"""Refuse an output before anything is computed."""

from __future__ import annotations

from pathlib import Path

from sftm_app.errors import OutputError
from sftm_app.planning.plan import Plan
from sftm_app.weights.partial import check_disk_space, refuse_existing


def check_output(plan: Plan, output: Path) -> None:
    """Refuse an output folder that cannot be used.

    Raises:
        OutputError: it exists, is an input or lies inside one, or its parent cannot be read.
        ResourceError: the disk has too little room.
    """
    resolved = output.resolve()
    for checkpoint in plan.preflight.checkpoints:
        if resolved == checkpoint.path or checkpoint.path in resolved.parents:
            raise OutputError(f"{output}: is inside the input {checkpoint.path}. Choose another output folder.")
    refuse_existing(output)
    check_disk_space(output, plan.output_bytes)
