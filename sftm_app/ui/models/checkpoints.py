"""The checkpoints that the Models tab offers."""

from __future__ import annotations

import os
from pathlib import Path

from sftm_app.evaluation.packs import PACK_NAME
from sftm_app.output.side_files import HEADS_FOLDER
from sftm_app.ui.settings import Settings
from sftm_app.weights.bare import weight_sets
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_SUFFIX, REPORT_NAME

MAX_SCANNED = 20_000
MAX_DEPTH = 4


def checkpoint_choices(settings: Settings) -> list[tuple[str, str]]:
    """Every checkpoint below the models folder and every saved model: the name to show, and the whole path."""
    root = settings.models_dir
    found = dict.fromkeys(path for folder in (root, settings.saved_dir) for path in find_checkpoints(folder))
    # A merged model is listed under Runs so far, and here under its name once it is saved.
    found = dict.fromkeys(path for path in found if settings.runs_dir not in path.parents)
    return [(str(path.relative_to(root)) if root in path.parents else str(path), str(path)) for path in found]


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
    return [folder] if any(name.endswith((".safetensors", ".bin", ".pt", INDEX_SUFFIX)) for name in names) else []
