"""Downloads from the hub into huggingface_hub's own cache, after a look; in the background for the app's pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftm_app.errors import Cancelled, CompatibilityError, HubError, InputError, JobError, SFTMError
from sftm_app.hub.hub_look import HubSelection, Look, Source, look
from sftm_app.hub.hub_process import HubProcess, make_request
from sftm_app.hub.presets import get_preset
from sftm_app.planning.recipe import Recipe, default_name, make_recipe
from sftm_app.weights.hub_names import HubRef, read_source

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """Everything is on this machine: the folders in the order of `Chosen.sources`."""

    look: Look
    folders: dict[Source, Path]

    def recipe(self) -> Recipe:
        """The recipe of the set, with the default method.

        Raises
            HubError: no base was chosen.
        """
        chosen = self.look.chosen
        if chosen.base is None:
            raise HubError("No base is named, so there is no recipe. Name the base that the tasks were tuned from.")
        tasks = [{"path": self.folders[source], "name": name} for name, source in chosen.tasks]
        return make_recipe(self.folders[chosen.base], tasks)


def choose(base: str, tasks: Sequence[str], preset: str | None, local: Callable[[str], Path | None]) -> HubSelection:
    """What a person's texts name; `local` as for read_source. A base of "" is none.

    A preset comes first; `base`, when given, takes its base's place, and `tasks` are added to its tasks.

    Raises
        CompatibilityError: texts that name nothing; says every one.
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
    """Download what a look found, exactly the commits that it saw, into huggingface_hub's own cache.

    `report` is called with the bytes written so far and in all. What is in the cache already is not loaded again.

    Raises
        CompatibilityError: the look found problems.
        HubError, ResourceError, Cancelled, JobError: see HubProcess.
    """
    found.require()
    sources, wanted, total = list(found.found), list(found.found.values()), found.missing_bytes
    folders: dict[Source, Path] = {source: source for source in found.chosen.sources if isinstance(source, Path)}
    folders.update(found.kept)
    commits, files = [one.commit for one in wanted], [one.files for one in wanted]
    request = make_request("fetch", [one.ref for one in wanted], commits=commits, files=files)
    for answer in hub.answers(request) if wanted else ():
        if answer["event"] == "progress":
            report(min(answer["done"], total), total)
        elif answer["event"] == "fetched":
            folders[sources[answer["index"]]] = Path(answer["folder"])
    report(total, total)
    return Fetched(found, {source: folders[source] for source in found.chosen.sources})


@dataclass(frozen=True)
class FetchStatus:
    """Where things stand. state: "idle", "looking", "looked", "fetching", "fetched", "failed" or "cancelled"."""

    state: str = "idle"
    message: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    look: Look | None = None
    fetched: Fetched | None = None

    @property
    def active(self) -> bool:
        return self.state in ("looking", "fetching")


class Fetching:
    """A look or a download in the background, one at a time; any page may watch it or stop it."""

    def __init__(self) -> None:
        self._status = FetchStatus()
        self._hub = HubProcess()
        self._lock = threading.Lock()

    @property
    def status(self) -> FetchStatus:
        return self._status

    def look(self, chosen: HubSelection) -> None:
        """Begin to look at what was chosen.

        Raises
            JobError: something is under way already.
        """
        self._begin(FetchStatus("looking"), lambda hub: FetchStatus("looked", look=look(chosen, hub)))

    def fetch(self) -> None:
        """Begin to download what the last look found.

        Raises
            JobError: something is under way already, or nothing was looked at.
        """
        seen = self._status.look
        if seen is None:
            raise JobError("Look at the models first: that shows what they are and how large the download is.")

        def download(hub: HubProcess) -> FetchStatus:
            return FetchStatus("fetched", look=seen, fetched=fetch(seen, hub, self._report))

        self._begin(FetchStatus("fetching", total_bytes=seen.missing_bytes, look=seen), download)

    def cancel(self) -> None:
        """Stop what is under way within two seconds."""
        if self._status.active:
            self._hub.cancel()

    def take(self) -> Fetched | None:
        """What was fetched, once: whoever gets it loads it."""
        with self._lock:
            fetched = self._status.fetched
            if fetched is not None:
                self._status = replace(self._status, fetched=None)
            return fetched

    def _report(self, done: int, total: int) -> None:
        with self._lock:
            if self._status.state == "fetching":
                self._status = replace(self._status, done_bytes=done, total_bytes=total)

    def _begin(self, status: FetchStatus, job: Callable[[HubProcess], FetchStatus]) -> None:
        with self._lock:
            if self._status.active:
                raise JobError("Models are being read from the hub already. Wait for it, or cancel it first.")
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
