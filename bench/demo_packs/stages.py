"""Cached stages, so that an interrupted run can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def digest(content: object) -> str:
    """A short name for these settings."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def stage(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `path`, made and cached there first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded
