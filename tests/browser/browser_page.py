"""The app and the page that the browser tests use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page


@dataclass(frozen=True)
class App:
    """A running app and the folders that it writes to."""

    url: str
    output_dir: Path
    cache_dir: Path


@dataclass
class Watched:
    """A page, the addresses of its requests to other machines, and its errors."""

    page: Page
    outside: list[str]
    errors: list[str]
