"""What the app was started with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sftm_app.errors import CompatibilityError, InputError, OutputError
from sftm_app.resources import asset_path
from sftm_app.weights.hub_names import is_blob, is_snapshot
from sftm_app.weights.regular import is_path

READ_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".yaml")


@dataclass(frozen=True)
class Settings:
    """Folders, device and port. Paths that come from a browser must lie in one of `roots`.

    Attributes:
        models_dir: the folder at which relative paths start.
        more_dirs: further folders that a person allowed at the start.
    """

    models_dir: Path
    output_dir: Path
    packs_dir: Path
    device: str = "auto"
    port: int | None = None
    more_dirs: tuple[Path, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that the app may read from."""
        return self.models_dir, self.output_dir, self.packs_dir, *self.more_dirs

    @property
    def models_dirs(self) -> tuple[Path, ...]:
        """The folders of models that were allowed at the start."""
        return self.models_dir, *self.more_dirs

    @property
    def runs_dir(self) -> Path:
        """The folder of all runs."""
        return self.output_dir / "runs"

    @property
    def saved_dir(self) -> Path:
        """The folder of saved models."""
        return self.output_dir / "models"


def make_settings(
    models_dirs: Sequence[Path], output_dir: Path | None, device: str = "auto", port: int | None = None
) -> Settings:
    """Settings with defaults: models come from ./models, or else from the home folder; output goes to ./sftm-output.

    Args:
        models_dirs: the folders of models that a person allowed, if any.

    Raises:
        InputError: a models folder asked for does not exist.
        OutputError: the output folder cannot be made.
    """
    # os.path answers False where pathlib would raise for lack of permission.
    for folder in models_dirs:
        if not os.path.isdir(folder.expanduser()):
            raise InputError(f"{folder}: there is no such folder. Give --models-dir a folder that holds checkpoints.")
    given = models_dirs or (Path("models") if Path("models").is_dir() else Path.home(),)
    models, *more = dict.fromkeys(folder.expanduser().resolve() for folder in given)
    output = (output_dir or Path("sftm-output")).expanduser().resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made ({error.strerror}). Give --output-dir another folder.") from None
    return Settings(models, output, asset_path("demo").resolve(), device, port, tuple(more))


def allowed(settings: Settings, text: str) -> Path:
    """A path from the browser, resolved. Snapshots in the hub's cache are allowed, although that is a hidden folder.

    Raises:
        InputError: it is empty, or it or a link in it leads outside the folders that the app was started with or into
            a hidden one.
    """
    if not text or not text.strip() or not is_path(text):
        raise InputError("No path is given. Pick a checkpoint from the list or paste the path of its folder.")
    try:
        given = Path(text.strip()).expanduser()
        path = (given if given.is_absolute() else settings.models_dir / given).resolve()
    except (OSError, RuntimeError, ValueError):
        raise InputError(f"{text.strip()[:200]}: is not a path. Paste the path of a checkpoint folder.") from None
    inside = [path.relative_to(root).parts for root in settings.roots if path == root or root in path.parents]
    # Roots may lie in each other: a demo pack below a hidden folder of the home folder is still a demo pack.
    if is_snapshot(path) or any(not any(part.startswith(".") for part in parts) for parts in inside):
        _refuse_links_outside(settings, path.parent if path.is_file() else path)
        return path
    if inside:
        raise InputError(f"{path}: lies in a hidden folder. Copy the checkpoint to a visible one.")
    raise InputError(
        f"{text.strip()[:200]}: lies outside {_folders(settings)}. Start the app with `--models-dir FOLDER` to allow "
        "another one; the option can be given several times."
    )


def allowed_all(settings: Settings, texts: Sequence[str]) -> list[Path]:
    """Several paths from the browser, see `allowed`.

    Raises:
        CompatibilityError: some are not allowed; one line for each.
    """
    paths, problems = [], []
    for text in texts:
        try:
            paths.append(allowed(settings, text))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise CompatibilityError(problems)
    return paths


def _folders(settings: Settings) -> str:
    first, *more = settings.models_dirs
    return f"the models folders {', '.join(map(str, (first, *more)))}" if more else f"the models folder {first}"


def _refuse_links_outside(settings: Settings, folder: Path) -> None:
    """Refuse a checkpoint whose files are links to somewhere else, unless they lead into the hub's cache.

    A folder that cannot be read passes: opening it says why.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            is_read = entry.is_symlink() and (entry.is_dir() or entry.name.endswith(READ_SUFFIXES))
            target = Path(entry.path).resolve() if is_read else None
            if target and not is_blob(target) and not any(root in target.parents for root in settings.roots):
                raise InputError(
                    f"{entry.path}: is a link to {target}, outside {_folders(settings)}. Put a copy in its place, or "
                    "start the app with `--models-dir FOLDER` to allow another folder."
                )
