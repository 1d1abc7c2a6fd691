"""Copy a merged model to its final place."""

from __future__ import annotations

from pathlib import Path

from sftm_app.errors import OutputError
from sftm_app.weights.copying import copy_file, list_files
from sftm_app.weights.partial import check_disk_space, output_folder, refuse_existing, sync_folder


def publish(model: Path, output: Path) -> None:
    """Copy a merged model to another folder, which appears complete or not at all.

    Raises:
        CheckpointError: `model` is not there or cannot be read.
        OutputError, ResourceError: `output` exists or cannot be written, or the disk is too full.
    """
    if model.resolve() in output.resolve().parents:
        raise OutputError(f"{output}: is inside the model to be copied. Choose another output folder.")
    refuse_existing(output)
    files = list_files(model)
    check_disk_space(output, sum(files.values()))
    with output_folder(output) as partial:
        folders = {partial / file.parent for file in files}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            copy_file(model / file, partial / file)
        for folder in folders:
            sync_folder(folder)
