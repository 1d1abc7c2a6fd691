"""What the browser tests work with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page


@dataclass(frozen=True)
class App:
    """A running app and the folder it writes to."""

    url: str
    output_dir: Path


@dataclass
class Watched:
    """A page, every request that left the machine, and every error on it."""

    page: Page
    outside: list[str]
    errors: list[str]
