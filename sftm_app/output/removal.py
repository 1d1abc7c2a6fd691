"""Remove a merged model: only what this app wrote, and never through a link."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from sftm_app.errors import OutputError
from sftm_app.output.side_files import HEADS_FOLDER, RECIPE_NAME, SIDE_FILES
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_SUFFIX, REPORT_NAME
from sftm_app.weights.partial import WORK_FILES, replaced_of, restore_replaced

# The report goes last: a folder without it is no merge of this app, and is never touched.
OWN_NAMES = (CONFIG_NAME, ADAPTER_CONFIG_NAME, RECIPE_NAME, REPORT_NAME, "README.md", *WORK_FILES)
OWN_PATTERNS = (
    *SIDE_FILES,
    "*.safetensors",
    f"*{INDEX_SUFFIX}",
    f"{HEADS_FOLDER}/*.safetensors",
    f"{HEADS_FOLDER}/*.json",
)


def remove_output(folder: Path) -> None:
    """Remove a merged model.

    Raises:
        OutputError: it is a link, was not written by this app, holds other files, or cannot be removed. Nothing is
            removed in the first three cases.
    """
    try:
        files, folders = _own_content(folder)
        for path in sorted(files, key=lambda path: path == folder / REPORT_NAME):
            path.unlink()
        for path in reversed(folders):
            path.rmdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be deleted ({error.strerror}). Remove it yourself.") from None


def check_replaceable(output: Path) -> None:
    """Refuse to replace what exists at `output`, unless all of it is a merged model of this app.

    What a killed run had put aside, and did not come to remove, is removed.

    Raises:
        OutputError: as `remove_output`.
    """
    restore_replaced(output)
    if not os.path.lexists(output):
        return
    try:
        _own_content(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be read ({error.strerror}). Choose another output folder.") from None
    remove_replaced(output)


def remove_replaced(output: Path) -> None:
    """Remove the output that a new one has replaced, if there is one. Raises OutputError as `remove_output`."""
    if os.path.lexists(replaced_of(output)):
        remove_output(replaced_of(output))


def _own_content(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and folders of a merged model. Raises OutputError if it is none, OSError if it cannot be read."""
    if folder.is_symlink() or not (folder / REPORT_NAME).is_file():
        raise OutputError(f"{folder}: was not written by this app, so it is not deleted. Remove it yourself.")
    files, folders = _content(folder)
    other = [path for path in files if not is_own(path.relative_to(folder))]
    if other:
        named = ", ".join(str(path.relative_to(folder)) for path in other[:3])
        raise OutputError(f"{folder}: holds files that this app did not write ({named}). Move them away first.")
    return files, folders


def is_own(path: PurePath) -> bool:
    """Whether this app writes a file of this name. path: relative to the model."""
    if path.as_posix() in OWN_NAMES:
        return True
    # PurePath.match compares from the right, so the number of parts has to be the same.
    return any(path.match(pattern) and len(path.parts) == len(PurePath(pattern).parts) for pattern in OWN_PATTERNS)


def _content(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files (links among them, not followed) and folders, each folder before what is in it. Raises OSError."""
    files, folders = [], [folder]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            inner = _content(Path(entry.path))
            files += inner[0]
            folders += inner[1]
        else:
            files.append(Path(entry.path))
    return files, folders
