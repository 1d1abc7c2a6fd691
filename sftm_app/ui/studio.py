"""What the server keeps between clicks: opened checkpoints, factors, built models. One for the whole app."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from threading import RLock

from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.engine.cache import open_store
from sftm_app.errors import InputError, SFTMError
from sftm_app.evaluation.candidates import ModelPool
from sftm_app.evaluation.packs import PACK_NAME, Pack, find_packs, pack_of
from sftm_app.inspection.inspector import Inspector
from sftm_app.jobs.workers import Workers
from sftm_app.output.report import REPORT_NAME
from sftm_app.output.side_files import HEADS_FOLDER
from sftm_app.planning.device import resolve_device
from sftm_app.planning.planner import check_recipe
from sftm_app.planning.recipe import Recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.ui.settings import Settings
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.bare import sets_of
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME, INDEX_SUFFIX
from sftm_app.weights.header import FileStamp

POOLS_KEPT = 2
PREFLIGHTS_KEPT = 4
SESSIONS_KEPT = 1000
MAX_SCANNED = 20_000
MAX_DEPTH = 4


class Studio:
    """Services of the running app, safe to use from several requests at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inspector = Inspector(store=open_store())
        self.workers = Workers()
        self.device = resolve_device(settings.device)
        self.packs: tuple[Pack, ...] = tuple(find_packs(settings.packs_dir))
        self._preflights: LRUCache[object, Preflight] = LRUCache(PREFLIGHTS_KEPT)
        self._pools: LRUCache[object, ModelPool] = LRUCache(POOLS_KEPT)
        self._draws: LRUCache[str, int] = LRUCache(SESSIONS_KEPT)
        self._lock = RLock()

    def preflight(self, workspace: Workspace) -> Preflight:
        """Base and tasks opened by their headers; opened again when a file changed.

        Raises
            InputError: nothing is loaded, or a checkpoint cannot be opened.
        """
        if not workspace.ready:
            raise InputError("No models are loaded. Open the Models tab and try the demo, or pick checkpoints.")
        with self._lock:
            key = self._key(workspace)
            known = self._preflights.get(key)
            return known or keep(self._preflights, key, check_recipe(_recipe(workspace)))

    def model_pool(self, workspace: Workspace) -> ModelPool:
        """The models of a workspace, ready to be tried.

        Raises
            InputError: base and tasks do not fit.
        """
        found = self.preflight(workspace)
        with self._lock:
            key = self._key(workspace)
            return self._pools.get(key) or keep(self._pools, key, ModelPool(found, self.device))

    def pack(self, workspace: Workspace) -> Pack | None:
        """The demo pack that the workspace's base belongs to, if any."""
        return pack_of(Path(workspace.base), list(self.packs)) if workspace.base else None

    def usable(self, workspace: Workspace) -> bool:
        """Whether there is something to inspect, merge and try; the Models tab says why not."""
        try:
            return workspace.ready and not self.preflight(workspace).problems
        except SFTMError:
            return False

    def newer_draw(self, session: str) -> int:
        """A number for one of the things that a page draws; it makes every earlier one of the same thing outdated."""
        with self._lock:
            self._draws[session] = self._draws.get(session, 0) + 1
            return self._draws[session]

    def is_latest_draw(self, session: str, number: int) -> bool:
        """Whether no newer number was given for the same thing."""
        with self._lock:
            return self._draws.get(session) == number

    def _key(self, workspace: Workspace) -> object:
        return workspace.inputs, workspace.tasks, workspace.roles, fingerprint(workspace)


def _recipe(workspace: Workspace) -> Recipe:
    return Recipe(workspace.base, workspace.tasks, roles=workspace.roles)


def fingerprint(workspace: Workspace) -> str:
    """Changes whenever a file of the workspace's folders is written, replaced, added or removed."""
    found: list[tuple[str, FileStamp | None]] = []
    for path in workspace.inputs:
        # A weight file's neighbours may be further parts of it.
        folder = os.path.dirname(path) if os.path.isfile(path) else path
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                found.append((entry.name, FileStamp.of(entry.path)))
        found.append((path, None))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def find_checkpoints(root: Path) -> list[Path]:
    """Checkpoints below `root`, at most four levels down; hidden folders are left out.

    They are folders with a config.json or a LoRA adapter, and weight files (or the index of shards) without either.

    Stops after 20,000 folders: a home folder can be large, and a path can always be pasted.
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
            described = bool(names & {CONFIG_NAME, ADAPTER_CONFIG_NAME})
            # A config alone is a module's, such as the pooling of a sentence encoder. Pickles are offered, to be
            # refused with the sentence on what to do.
            holds = any(name.endswith((".safetensors", ".bin", ".pt", INDEX_SUFFIX)) for name in names)
            found += ([folder] if holds else []) if described else sets_of(folder, names)
            # Weights there are no checkpoints: heads that were kept apart, and samples.
            inner = {HEADS_FOLDER} if REPORT_NAME in names else {"samples"} if PACK_NAME in names else set()
            below += [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and entry.name not in inner
            ]
        level = below
    return sorted(found)
