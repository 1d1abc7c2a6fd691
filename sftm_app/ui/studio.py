"""What the server keeps between clicks: opened checkpoints, factors, built models. One for the whole app."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import TypeVar

from cachetools import LRUCache

from sftm_app.caching import keep
from sftm_app.errors import InputError, SFTMError
from sftm_app.evaluation.answer_store import AnswerStore
from sftm_app.evaluation.candidates import ModelPool
from sftm_app.evaluation.packs import Pack, find_packs, pack_of
from sftm_app.inspection.inspector import Inspector
from sftm_app.jobs.folder import RunFolder, list_runs
from sftm_app.jobs.workers import Workers
from sftm_app.output.report import Report, load_report
from sftm_app.pipeline import prepare
from sftm_app.planning.device import resolve_device
from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import Recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.ui.comparisons import Comparisons
from sftm_app.ui.evaluate.sample_sets import SampleSets
from sftm_app.ui.keeping import FOLDER, Keeper
from sftm_app.ui.merges import Merges
from sftm_app.ui.searches import Searches
from sftm_app.ui.settings import Settings
from sftm_app.ui.workspace import Workspace, fingerprint

POOLS_KEPT = 2
PREFLIGHTS_KEPT = 4
PAGES_KEPT = 1000
RECIPES_KEPT = 256
REPORTS_KEPT = 16
ANSWERS_FOLDER = "measured"
# Hidden, so that nobody finds what others made among the models.
VISITORS_FOLDER = ".visitors"
VISITORS_KEPT = 256
# How many merges run at once where several people use the app.
MERGES_AT_ONCE = 2

Value = TypeVar("Value")


@dataclass
class Belongings:
    """What each visitor has alone: runs, saved models, tables, searches and views. One for all without visitors."""

    settings: Settings
    comparisons: Comparisons
    answers: AnswerStore
    merges: Merges
    sample_sets: SampleSets
    searches: Searches
    keeper: Keeper

    @classmethod
    def of(cls, settings: Settings) -> Belongings:
        """New ones, with what the output folder holds."""
        answers, keeper = AnswerStore(settings.output_dir / ANSWERS_FOLDER), Keeper(settings.output_dir / FOLDER)
        return cls(settings, Comparisons(), answers, Merges(settings), SampleSets(), Searches(), keeper)


class Studio:
    """Services of the running app, safe to use from several requests at once.

    Args:
        settings, session: what the app was started with.
        visitor: says whose event is handled now; "" where visitors are not told apart.
    """

    def __init__(self, settings: Settings, session: Session, visitor: Callable[[], str] | None = None) -> None:
        self.session, self._visitor = session, visitor
        self._all = Belongings.of(settings)
        self._visitors: LRUCache[str, Belongings] = LRUCache(VISITORS_KEPT)
        self.inspector = Inspector(cache=session.cache, n_threads=session.n_threads)
        self.workers = Workers(MERGES_AT_ONCE if visitor else None)
        self.device = resolve_device(session.device)
        self.packs: tuple[Pack, ...] = tuple(find_packs(settings.packs_dir))
        self._preflights: LRUCache[object, Preflight] = LRUCache(PREFLIGHTS_KEPT)
        self._pools: LRUCache[object, ModelPool] = LRUCache(POOLS_KEPT)
        self._recipes: LRUCache[object, Recipe] = LRUCache(RECIPES_KEPT)
        self._reports: LRUCache[object, Report] = LRUCache(REPORTS_KEPT)
        self._requests: LRUCache[str, int] = LRUCache(PAGES_KEPT)
        self._lock = RLock()

    @property
    def own(self) -> Belongings:
        """The belongings of the visitor whose event is handled now."""
        visitor = self._visitor() if self._visitor else ""
        if not visitor:
            return self._all
        with self._lock:
            if visitor not in self._visitors:
                folder = self._all.settings.output_dir / VISITORS_FOLDER / visitor
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._visitors[visitor] = Belongings.of(replace(self._all.settings, output_dir=folder))
            return self._visitors[visitor]

    @property
    def settings(self) -> Settings:
        """Folders, device and port; the output folder is the visitor's own."""
        return self.own.settings

    @property
    def comparisons(self) -> Comparisons:
        """The tables of compared models."""
        return self.own.comparisons

    @property
    def answers(self) -> AnswerStore:
        """Answers that are known."""
        return self.own.answers

    @property
    def merges(self) -> Merges:
        """The merges of workspaces."""
        return self.own.merges

    @property
    def sample_sets(self) -> SampleSets:
        """Samples that were read."""
        return self.own.sample_sets

    @property
    def searches(self) -> Searches:
        """The searches for the best merge."""
        return self.own.searches

    @property
    def keeper(self) -> Keeper:
        """What views show, by workspace."""
        return self.own.keeper

    def preflight(self, workspace: Workspace) -> Preflight:
        """Base and tasks opened by their headers; opened again when a file changed.

        Raises:
            InputError: nothing is loaded, or a checkpoint cannot be opened.
        """
        if not workspace.ready:
            raise InputError("No models are loaded. Open the Models tab and try a demo, or pick checkpoints.")
        recipe = Recipe(workspace.base, workspace.tasks, roles=workspace.roles, tokenizer=workspace.tokenizer)
        return self._cached(self._preflights, workspace_key(workspace), lambda: open_inputs(recipe, self.session))

    def plan(self, workspace: Workspace, recipe: Recipe) -> Plan:
        """What a merge will do, and what it takes.

        Raises:
            InputError: base and tasks do not fit, or there is no plan for these settings.
        """
        return prepare(recipe, self.session, self.preflight(workspace))

    def model_pool(self, workspace: Workspace) -> ModelPool:
        """The models of a workspace, ready to be tried.

        Raises:
            InputError: base and tasks do not fit.
        """
        found = self.preflight(workspace)
        return self._cached(self._pools, workspace_key(workspace), lambda: ModelPool(found, self.session))

    def pack(self, workspace: Workspace) -> Pack | None:
        """The demo pack that the workspace's base belongs to, if any."""
        return pack_of(Path(workspace.base), list(self.packs)) if workspace.base else None

    def usable(self, workspace: Workspace) -> bool:
        """Whether there is something to inspect, merge and try. If not, the Models tab says why."""
        try:
            return workspace.ready and not self.preflight(workspace).problems
        except SFTMError:
            return False

    def recipe(self, run: RunFolder) -> Recipe:
        """A run's recipe, which never changes.

        Raises:
            RecipeError: it cannot be read.
        """
        return self._cached(self._recipes, run.path, run.recipe)

    def report(self, run: RunFolder) -> Report:
        """The report of a finished run.

        Raises:
            CheckpointError: it cannot be read.
        """
        changed = run.report.stat().st_mtime_ns if run.report.exists() else 0
        return self._cached(self._reports, (run.path, changed), lambda: load_report(run.report))

    def runs_of(self, workspace: Workspace) -> Iterator[RunFolder]:
        """The runs that merged this workspace's checkpoints, newest first; those with an unreadable recipe excepted."""
        for run in list_runs(self.settings.runs_dir):
            with contextlib.suppress(SFTMError):
                recipe = self.recipe(run)
                if (recipe.base, *(task.path for task in recipe.tasks)) == workspace.inputs:
                    yield run

    def latest_request(self, what: str) -> Callable[[], bool]:
        """Note that a page asks for something, and return a function that says whether that is still its last request.

        what: the page and the thing that it asks for.
        """
        with self._lock:
            number = self._requests[what] = self._requests.get(what, 0) + 1

        def is_latest() -> bool:
            with self._lock:
                return self._requests.get(what) == number

        return is_latest

    def _cached(self, cache: LRUCache[object, Value], key: object, make: Callable[[], Value]) -> Value:
        with self._lock:
            return cache[key] if key in cache else keep(cache, key, make())


class OwnKeeper:
    """Keeps what views show for whoever's event is handled now."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def get(self, ws: Workspace, part: str) -> str:
        """The text that was noted last; "" if none was."""
        return self._studio.keeper.get(ws, part)

    def put(self, ws: Workspace, part: str, text: str) -> None:
        """Keep a text."""
        self._studio.keeper.put(ws, part, text)


def workspace_key(workspace: Workspace) -> object:
    """Identifies a workspace and the state of its files."""
    return workspace.base, workspace.tasks, workspace.roles, workspace.tokenizer, fingerprint(workspace)
