"""What the tabs show, kept: over a reload, in a shared link, in a second tab of the browser, over a restart.

There is one way for all of them. A tab describes what it shows as a short text and notes it in a `Part`, which writes
it into the page's address and into a file of the workspace. When a workspace opens, the tab asks its part for the text:
that of the address the page was opened with, otherwise the one that was noted last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from threading import RLock
from typing import Protocol

from cachetools import LRUCache

from sftm_app.caching import write_text
from sftm_app.ui.handlers import Updates
from sftm_app.ui.widgets.address_bar import AddressPart
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.regular import read_file

FOLDER = "views"
WORKSPACES_KEPT = 64
# A longer text is kept on this machine only: browsers and mail programs cut long addresses.
MOST_IN_ADDRESS = 2000
MOST_KEPT = 4 << 20


class Keeper:
    """The texts of all parts by workspace, each in a small file. Safe to use from several requests at once.

    Args:
        folder: where the files are. If they cannot be written, the next start opens with the defaults; so that is not
            reported.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, RLock()
        self._texts: LRUCache[str, dict[str, str]] = LRUCache(WORKSPACES_KEPT)

    def get(self, ws: Workspace, part: str) -> str:
        """The text that was noted last; "" if none was."""
        with self._lock:
            return self._of(_name_of(ws)).get(part, "")

    def put(self, ws: Workspace, part: str, text: str) -> None:
        """Keep a text, unless it is longer than 4 MiB."""
        name = _name_of(ws)
        with self._lock:
            texts = self._of(name)
            if texts.get(part, "") == text or len(text) > MOST_KEPT:
                return
            self._texts[name] = texts = texts | {part: text}
            with contextlib.suppress(OSError):
                write_text(self._folder / name, json.dumps(texts))
                self._drop_oldest()

    def _of(self, name: str) -> dict[str, str]:
        if name not in self._texts:
            found = {}
            with contextlib.suppress(OSError, ValueError):
                read = json.loads(read_file(self._folder / name))
                if isinstance(read, dict):
                    found = {part: text for part, text in read.items() if isinstance(text, str)}
            self._texts[name] = found
        return self._texts[name]

    def _drop_oldest(self) -> None:
        names = [name for name in os.listdir(self._folder) if name.endswith(".json")]
        files = [(path.stat().st_mtime, path) for path in (self._folder / name for name in names)]
        for _, path in sorted(files)[:-WORKSPACES_KEPT]:
            path.unlink()


def _name_of(ws: Workspace) -> str:
    """The file of a workspace. It stays the same when files are retrained, or roles and weights are set."""
    models = ws.base, *((task.name, task.path) for task in ws.tasks)
    return f"{hashlib.sha256(repr(models).encode()).hexdigest()[:16]}.json"


class Keeps(Protocol):
    """Keeps texts: a Keeper, or whoever finds the right one."""

    def get(self, ws: Workspace, part: str) -> str:
        """The text that was noted last; "" if none was."""

    def put(self, ws: Workspace, part: str, text: str) -> None:
        """Keep a text."""


class Part:
    """One tab's share of the address and of what is kept. Made by `Parts.add`.

    Attributes:
        shown: the component that `note` updates. It is not visible.
    """

    def __init__(self, keeper: Keeps, name: str, shown: AddressPart) -> None:
        self._keeper, self._name, self.shown = keeper, name, shown

    def note(self, ws: Workspace, text: str, shared: bool = True) -> Updates:
        """Keep what the tab shows of a workspace. shared: whether it goes into the address, if it is short."""
        self._keeper.put(ws, self._name, text)
        return {self.shown: text if shared and len(text) <= MOST_IN_ADDRESS else ""}

    def asked(self, ws: Workspace) -> tuple[str, bool]:
        """What the tab should show of a workspace that opens.

        Returns:
            The text, "" for the defaults; and whether the page's address asked for it.
        """
        given = dict(ws.asked).get(self._name, "")
        return (given, True) if given else (self._keeper.get(ws, self._name), False)


class Parts:
    """The parts of one page. Their components lie outside of the tabs: those of a tab come to life when it is shown."""

    def __init__(self, keeper: Keeps) -> None:
        self._keeper, self._shown = keeper, list[AddressPart]()

    def add(self, name: str, flat: bool = False) -> Part:
        """A part.

        Args:
            name: its word in the address, `name=text`.
            flat: the text is itself fields of an address, which then stand there without the name.
        """
        self._shown.append(AddressPart(name, flat, render=False))
        return Part(self._keeper, name, self._shown[-1])

    def lay_out(self) -> None:
        """Put the components onto the page."""
        for component in self._shown:
            component.render()
