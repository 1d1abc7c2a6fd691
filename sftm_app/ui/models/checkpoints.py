"""The checkpoints that the Models tab offers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sftm_app.errors import SFTMError
from sftm_app.evaluation.packs import PACK_NAME
from sftm_app.output.side_files import HEADS_FOLDER
from sftm_app.ui.settings import Settings
from sftm_app.units import format_bytes
from sftm_app.weights.bare import weight_sets
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_SUFFIX, REPORT_NAME
from sftm_app.weights.json_files import read_json

MAX_SCANNED = 20_000
MAX_DEPTH = 4
MOST_KIND = 40
WEIGHTS = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Found:
    """A checkpoint to pick. kind: in words; is_adapter: whether it needs a base; n_bytes: of its weight files."""

    path: Path
    kind: str
    is_adapter: bool
    n_bytes: int


def checkpoint_choices(settings: Settings, more: Sequence[Path] = ()) -> list[Found]:
    """Every checkpoint below the models folders and every saved model, with what it is.

    Args:
        settings: say which folders were allowed at the start.
        more: folders that were added in the app.
    """
    folders = *settings.models_dirs, *more, settings.saved_dir
    found = dict.fromkeys(path for folder in folders for path in find_checkpoints(folder))
    # A merged model is listed under Runs so far, and here under its name once it is saved.
    return [look_at(path) for path in found if settings.runs_dir not in path.parents]


def look_at(path: Path) -> Found:
    """What a checkpoint is, from its config and the sizes of its files."""
    if path.name.endswith(INDEX_SUFFIX) or path.is_file():
        return Found(path, "bare weights", False, _size(path.parent if path.name.endswith(INDEX_SUFFIX) else path))
    is_adapter = (path / ADAPTER_CONFIG_NAME).exists()
    try:
        config = read_json(path / (ADAPTER_CONFIG_NAME if is_adapter else CONFIG_NAME))
    except SFTMError:
        config = {}
    kind = f"LoRA adapter, r {config.get('r', '?')}" if is_adapter else str(config.get("model_type", "unknown kind"))
    return Found(path, kind[:MOST_KIND], is_adapter, _size(path))


def _size(path: Path) -> int:
    """Bytes of a file, or of the weight files in a folder."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.name.endswith(WEIGHTS))
    except OSError:
        return 0


def title_of(found: Found, settings: Settings) -> str:
    """One line of the list: where it is, what it is, how large."""
    root = settings.models_dir
    # Of a demo, or of another folder, the last parts tell enough; the whole path is what is picked.
    name = found.path.relative_to(root) if root in found.path.parents else Path(*found.path.parts[-3:])
    return f"{name} · {found.kind} · {format_bytes(found.n_bytes)}"


def find_checkpoints(root: Path) -> list[Path]:
    """Checkpoints below `root`, at most four levels down, not in hidden folders.

    A checkpoint is a folder with a config.json or a LoRA adapter; or weight files (or the index of shards) without
    either. The search stops after 20,000 folders, because a home folder can be large and a path can always be pasted.
    """
    found: list[Path] = []
    level, n_scanned = [root], 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            n_scanned += 1
            if n_scanned > MAX_SCANNED:
                return sorted(found)
            try:
                entries = list(os.scandir(folder))
            except OSError:
                continue
            names = {entry.name for entry in entries}
            found += _checkpoints_in(folder, names)
            # These hold weights that are not checkpoints: heads that were kept apart, and samples.
            inner = {HEADS_FOLDER} if REPORT_NAME in names else {"samples"} if PACK_NAME in names else set()
            below += [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in inner
            ]
        level = below
    return sorted(found)


def _checkpoints_in(folder: Path, names: set[str]) -> list[Path]:
    if not names & {CONFIG_NAME, ADAPTER_CONFIG_NAME}:
        return weight_sets(folder, names)
    # A config alone describes a module, such as the pooling of a sentence encoder. Pickles are offered, and refused
    # with a sentence that says what to do.
    return [folder] if any(name.endswith((*WEIGHTS, INDEX_SUFFIX)) for name in names) else []
