"""Downloads models from the hub into huggingface_hub's cache, in the background for the app's pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.errors import Cancelled, CompatibilityError, HubError, InputError, JobError, SFTMError
from sftm_app.hub.hub_look import HubSelection, Look, Source, look
from sftm_app.hub.hub_messages import Request
from sftm_app.hub.hub_process import HubProcess
from sftm_app.hub.presets import get_preset
from sftm_app.planning.recipe import Recipe, default_name, make_recipe
from sftm_app.weights.hub_names import HubRef, hub_cache, read_source

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """A selection that is on this machine, and the folder of each model, in order."""

    look: Look
    folders: dict[Source, Path]

    def recipe(self) -> Recipe:
        """The recipe that merges the selection with the default method.

        Raises:
            HubError: no base was chosen.
        """
        chosen = self.look.chosen
        if chosen.base is None:
            raise HubError("There is no recipe without a base. Name the base that the tasks were fine-tuned from.")
        tasks = [{"path": self.folders[source], "name": name} for name, source in chosen.tasks]
        return make_recipe(self.folders[chosen.base], tasks)


def choose(base: str, tasks: Sequence[str], preset: str | None, local: Callable[[str], Path | None]) -> HubSelection:
    """Read what a person typed.

    Args:
        base: a folder or a model on the hub, or ""; replaces the preset's base.
        tasks: the same for tasks; added to the preset's.
        preset: the name of a preset, if any.
        local: see read_source.

    Raises:
        CompatibilityError: texts that name nothing; names every one of them.
    """
    problems: list[str] = []
    notes: list[str] = []

    def read(text: str) -> Source | None:
        try:
            source, note = read_source(text, local)
        except InputError as error:
            problems.append(str(error))
            return None
        notes.extend([note] if note else [])
        return source

    known = get_preset(preset) if preset else None
    named: Source | None = read(base) if base.strip() else known.base if known else None
    pairs: list[tuple[str, Source]] = list(known.tasks) if known else []
    for source in [read(text) for text in tasks if text.strip()]:
        if source is None:
            continue
        own = source.name if isinstance(source, HubRef) else source
        pairs.append((default_name(own, {name for name, _ in pairs}), source))
    if problems:
        raise CompatibilityError(problems)
    return HubSelection(named, tuple(pairs), tuple(notes))


def fetch(found: Look, hub: HubProcess, report: Report = lambda done, total: None) -> Fetched:
    """Download what a look found, at exactly its commits. Files in the cache are not downloaded again.

    Args:
        found: the look.
        hub: a process that was not used yet.
        report: called with the bytes written so far and in total.

    Raises:
        CompatibilityError: the look found problems.
        HubError, ResourceError, Cancelled, JobError: see HubProcess.
    """
    found.require()
    wanted = [(model.source, model.download) for model in found.models if model.download]
    folders, total = dict(found.folders), found.missing_bytes
    request = Request(hub_cache(), downloads=tuple(download for _, download in wanted))
    for answer in hub.answers(request) if wanted else ():
        if answer.event == "progress":
            report(min(answer.done_bytes, total), total)
        elif answer.folder:
            folders[wanted[answer.index][0]] = answer.folder
    report(total, total)
    return Fetched(found, {source: folders[source] for source in found.chosen.sources})


@dataclass(frozen=True)
class FetchStatus:
    """The state: "idle", "looking", "looked", "fetching", "fetched", "failed" or "cancelled"; and its figures."""

    state: str = "idle"
    message: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    look: Look | None = None
    fetched: Fetched | None = None

    @property
    def active(self) -> bool:
        """Whether something is running."""
        return self.state in ("looking", "fetching")


class Fetching:
    """A look or a download in the background, one at a time. Any page may watch it or stop it."""

    def __init__(self, architectures: ArchitectureCache | None = None) -> None:
        self._architectures = architectures
        self._status = FetchStatus()
        self._hub = HubProcess()
        self._lock = threading.Lock()

    @property
    def status(self) -> FetchStatus:
        """The current state."""
        return self._status

    def look(self, chosen: HubSelection) -> None:
        """Start to look at a selection. Raises JobError if something is running."""
        self._start(
            FetchStatus("looking"), lambda hub: FetchStatus("looked", look=look(chosen, hub, self._architectures))
        )

    def fetch(self) -> None:
        """Start to download what the last look found. Raises JobError if something is running, or there was no look."""
        seen = self._status.look
        if seen is None:
            raise JobError("Look at the models first, to see what they are and how large the download is.")

        def download(hub: HubProcess) -> FetchStatus:
            return FetchStatus("fetched", look=seen, fetched=fetch(seen, hub, self._report))

        self._start(FetchStatus("fetching", total_bytes=seen.missing_bytes, look=seen), download)

    def cancel(self) -> None:
        """Stop what is running within two seconds."""
        if self._status.active:
            self._hub.cancel()

    def take(self) -> Fetched | None:
        """What was fetched, for the first caller only, who loads it."""
        with self._lock:
            fetched = self._status.fetched
            if fetched is not None:
                self._status = replace(self._status, fetched=None)
            return fetched

    def _report(self, done: int, total: int) -> None:
        with self._lock:
            if self._status.state == "fetching":
                self._status = replace(self._status, done_bytes=done, total_bytes=total)

    def _start(self, status: FetchStatus, job: Callable[[HubProcess], FetchStatus]) -> None:
        with self._lock:
            if self._status.active:
                raise JobError("The hub is being read already. Wait for it, or cancel it first.")
            self._status, self._hub = status, HubProcess()
        threading.Thread(target=self._run, args=(job, self._hub), name="hub", daemon=True).start()

    def _run(self, job: Callable[[HubProcess], FetchStatus], hub: HubProcess) -> None:
        try:
            status = job(hub)
        except Cancelled as error:
            status = FetchStatus("cancelled", str(error), look=self._status.look)
        except SFTMError as error:
            status = FetchStatus("failed", str(error), look=self._status.look)
        except Exception as error:
            status = FetchStatus("failed", f"Unexpected {type(error).__name__} ({error}). Try again.")
        with self._lock:
            self._status = status
