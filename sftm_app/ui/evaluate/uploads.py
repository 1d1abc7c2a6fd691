"""Labelled samples that a person uploads: copied to the output folder, where they stay."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sftm_app.errors import OutputError, SampleError
from sftm_app.evaluation.text_files import TEXT_ENDINGS
from sftm_app.ui.settings import Settings

FOLDER = "samples"
MOST_FILES = 128


def keep_uploads(settings: Settings, files: Sequence[str]) -> Path:
    """Copy uploaded files of labelled texts to the output folder.

    Args:
        settings: where the output folder is.
        files: where the browser's files were stored.

    Returns:
        The file; or a folder of its own for several, one for each task.

    Raises:
        SampleError: there are none, or one of them is not a file of labelled texts.
        OutputError: they cannot be copied.
    """
    paths = [Path(file) for file in files]
    other = [path.name for path in paths if path.suffix.lower() not in TEXT_ENDINGS]
    if other or not paths:
        raise SampleError(f"{', '.join(other[:3]) or 'Nothing'}: upload files that end in {', '.join(TEXT_ENDINGS)}.")
    if len(paths) > MOST_FILES:
        raise SampleError(f"{len(paths)} files were uploaded; at most {MOST_FILES} are taken, one for each task.")
    root = settings.output_dir / FOLDER
    folder = root if len(paths) == 1 else root / _free(root, "set")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        targets = [folder / _free(folder, path.stem, path.suffix.lower()) for path in paths]
        for path, target in zip(paths, targets, strict=True):
            shutil.copyfile(path, target)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}). Free some space.") from None
    return targets[0] if len(paths) == 1 else folder


def _free(folder: Path, stem: str, ending: str = "") -> str:
    """A name that is not taken yet."""
    names = (f"{stem}{ending}" if n == 1 else f"{stem}-{n}{ending}" for n in range(1, 10_000))
    return next(name for name in names if not (folder / name).exists())
