"""What the app and the process that contacts the hub send each other: one JSON object per line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from sftm_app.hub.hub_files import Download
from sftm_app.weights.hub_names import HubRef


@dataclass(frozen=True)
class Request:
    """Look at `refs`, or fetch `downloads`.

    Attributes:
        cache: the hub's cache.
        refs: models to look at.
        skeletons: the folder for their skeletons, which are called 0, 1, ...
        downloads: files to download into the cache.
    """

    cache: Path
    refs: tuple[HubRef, ...] = ()
    skeletons: Path | None = None
    downloads: tuple[Download, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One event of a request.

    Attributes:
        event: "looked": the skeleton is complete, and `download` says what to fetch. "cached": the hub cannot be
            reached, but `folder` holds an earlier download. "refused": the model cannot be used, see `message`.
            "progress": `done_bytes` have been written. "fetched": the model is complete in `folder`. "failed": the
            whole request failed, see `message`. "done": the request is complete.
        index: of the model in the request.
        disk_full: the request failed because the disk is full.
    """

    event: Literal["looked", "cached", "refused", "progress", "fetched", "failed", "done"]
    index: int = 0
    download: Download | None = None
    folder: Path | None = None
    message: str = ""
    done_bytes: int = 0
    disk_full: bool = False


REQUEST = TypeAdapter(Request)
ANSWER = TypeAdapter(Answer)
