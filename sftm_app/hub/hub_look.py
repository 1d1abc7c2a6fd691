"""A look at models on the hub: configs and headers, compared as for a merge, before anything big is downloaded."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sftm_app.errors import CompatibilityError, SFTMError
from sftm_app.hub.hub_files import Found
from sftm_app.hub.hub_process import HubProcess, make_request
from sftm_app.planning.planner import check_recipe
from sftm_app.planning.recipe import Recipe, TaskEntry
from sftm_app.units import format_bytes, format_distinct
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint
from sftm_app.weights.hub_names import HubRef, hub_cache

Source = HubRef | Path


@dataclass(frozen=True)
class HubSelection:
    """What a person picked: models on the hub, folders, or both. Without a base the tasks are only downloaded.

    tasks: pairs of name and source. notes: sentences about texts that could have meant two things.
    """

    base: Source | None
    tasks: tuple[tuple[str, Source], ...]
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Base and tasks, each once, in order."""
        sources = [source for _, source in self.tasks]
        return tuple(dict.fromkeys([self.base, *sources] if self.base is not None else sources))

    @property
    def refs(self) -> tuple[HubRef, ...]:
        return tuple(source for source in self.sources if isinstance(source, HubRef))


@dataclass(frozen=True)
class Seen:
    """One checkpoint by its headers. found: what a download brings; None for one that is on this machine already.

    The checkpoint's path may be gone: only its config and headers are of use.
    """

    source: Source
    checkpoint: Checkpoint
    found: Found | None

    @property
    def kind(self) -> str:
        """The model's class, or that it is an adapter, or that its config says nothing."""
        adapter = self.checkpoint.adapter
        return self.checkpoint.architecture if adapter is None else f"LoRA adapter, rank {adapter.r}"


@dataclass(frozen=True)
class Look:
    """What the headers tell. `problems` speak against a merge or a download, `notes` are worth knowing.

    found: what is to be downloaded; kept: folders that are here already.
    """

    chosen: HubSelection
    seen: tuple[Seen, ...]
    found: dict[Source, Found]
    kept: dict[Source, Path]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        return sum(found.missing_bytes for found in self.found.values())

    def summary(self) -> list[str]:
        """One line a checkpoint, and what the download takes."""
        lines = [
            f"{one.source}{f' at {one.found.commit[:12]}' if one.found else ''}: {one.kind}, "
            f"{one.checkpoint.n_parameters / 1e6:.3g} M parameters in {', '.join(one.checkpoint.dtypes)}, "
            f"{format_bytes(one.found.missing_bytes) + ' to download' if one.found else 'on this machine'}"
            for one in self.seen
        ]
        return [*lines, f"Download: {format_bytes(self.missing_bytes)}. Free: {format_bytes(self.free_bytes)}."]

    def require(self) -> Look:
        """Itself, when there is no problem.

        Raises
            CompatibilityError: carrying every problem.
        """
        if self.problems:
            raise CompatibilityError(self.problems)
        return self


def look(chosen: HubSelection, hub: HubProcess) -> Look:
    """Read configs and headers of everything chosen and compare them, before anything big is downloaded.

    Raises
        CompatibilityError: models that cannot be found, seen or opened; names every one.
        Cancelled, JobError: see HubProcess.
    """
    cache = hub_cache()
    with tempfile.TemporaryDirectory(prefix="sftm-hub-") as temporary:
        skeletons = Path(temporary).resolve()
        found: dict[Source, Found] = {}
        kept: dict[Source, Path] = {}
        folders: dict[Source, Path] = {source: source for source in chosen.sources if isinstance(source, Path)}
        notes, refused = [], []
        for answer in hub.answers(make_request("look", chosen.refs, folder=str(skeletons))) if chosen.refs else ():
            ref = chosen.refs[answer["index"]]
            if answer["event"] == "refused":
                refused.append(answer["message"])
                continue
            if answer["note"]:
                notes.append(answer["note"])
            if answer["event"] == "cached":
                folders[ref] = kept[ref] = Path(answer["folder"])
            else:
                folders[ref] = skeletons / str(answer["index"])
                there = HubRef(ref.repo_id, answer["revision"])
                found[ref] = Found(there, answer["commit"], answer["files"], answer["missing_bytes"])
        if refused:
            raise CompatibilityError(sorted(refused))
        opened, problems, said = _compare(chosen, folders)
    free = _free_bytes(cache)
    room = _room_problem(cache, sum(one.missing_bytes for one in found.values()), free)
    seen = tuple(Seen(source, opened[source], found.get(source)) for source in chosen.sources)
    return Look(chosen, seen, found, kept, (*problems, *room), (*chosen.notes, *notes, *said), free)


def _compare(
    chosen: HubSelection, folders: dict[Source, Path]
) -> tuple[dict[Source, Checkpoint], list[str], list[str]]:
    """Checkpoints, problems and notes. Skeletons lie in nameless folders: sentences get the models' names instead."""

    def named(text: str) -> str:
        # The longest first: one nameless folder's path may begin another's.
        for source, folder in sorted(folders.items(), key=lambda item: -len(str(item[1]))):
            text = text.replace(str(folder), str(source))
        return text

    try:
        opened = {source: open_checkpoint(folders[source]) for source in chosen.sources}
        if chosen.base is None:
            return opened, [], []
        tasks = tuple(TaskEntry(str(folders[source]), name) for name, source in chosen.tasks)
        compared = check_recipe(Recipe(str(folders[chosen.base]), tasks))
    except SFTMError as error:
        raise CompatibilityError([named(line) for line in str(error).split("\n")]) from None
    return opened, [named(text) for text in compared.problems], [named(text) for text in compared.notes]


def _free_bytes(cache: Path) -> int:
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def _room_problem(cache: Path, needed: int, free: int) -> list[str]:
    if needed <= free:
        return []
    takes, left = format_distinct(needed, free)
    return [
        f"The download takes {takes} and {cache} has {left} left. Free some room, or set "
        "HF_HOME to a folder on another disk and start again."
    ]
