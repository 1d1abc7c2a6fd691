"""What identifies a model that is tried, its files included, so that answers are kept for just this model."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from sftm_app import __version__
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.disk_cache import digest
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.regular import read_file

# Raise this when the same model answers otherwise than before.
VERSION = 1


def model_key(found: Preflight, candidate: Candidate, session: Session, split_fused: bool = False) -> str:
    """Changes whenever the model could answer otherwise: with its files, its settings, or the mathematics.

    Args:
        found: the workspace. Heads and tokenizers come from its tasks.
        candidate: the model.
        session: its cache knows the version of the mathematics.
        split_fused: how it is merged, if it is merged in memory.
    """
    inputs = [_files(found.base), *(_files(task.checkpoint) for task in found.tasks)]
    if candidate.key in (BASE.key, INDIVIDUAL.key):
        what: object = candidate.key
    elif candidate.folder is not None:
        what = ("folder", merge_id(candidate.folder))
    else:
        made_by = session.cache.made_by if session.cache else __version__
        weights = candidate.weights or tuple(task.weight for task in found.tasks)
        params = sorted(candidate.params.items())
        # Random masks depend on the tasks' names. A person may have set roles and the tokenizer.
        names, source = [task.name for task in found.tasks], found.tokenizers.source
        set_by_hand = sorted((name, repr(owner)) for name, owner in found.architecture.owners.items())
        made = names, weights, digest(set_by_hand), str(source.path) if source else ""
        what = ("memory", candidate.kind, params, made, split_fused, made_by)
    return digest("answers", VERSION, repr(what), repr(inputs))


def merge_id(folder: Path) -> str:
    """Identifies a merge on disk: a copy has the same, another merge with the same settings has not.

    A merge by another program, without a report, is known by its files.
    """
    with contextlib.suppress(OSError):  # the report says when and how long, so no two merges share it
        return hashlib.sha256(read_file(folder / REPORT_NAME)).hexdigest()[:32]
    return digest("merge", str(folder.resolve()), repr(_stats(folder)))


def _stats(folder: Path) -> list[tuple[str, int, int]]:
    with contextlib.suppress(OSError):
        return sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
    return []


def _files(checkpoint: Checkpoint) -> list[tuple[str, int, int]]:
    """The weight files of a checkpoint: path, size and time of the last change."""
    stamps = sorted((str(path), stamp) for path, stamp in checkpoint.stamps.items())
    return [(path, stamp.size_bytes, stamp.mtime_ns) for path, stamp in stamps]
