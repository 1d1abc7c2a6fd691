"""Looks at models on the hub: reads configs and headers and compares them, before anything large is downloaded."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.errors import CompatibilityError, SFTMError
from sftm_app.hub.hub_files import Download
from sftm_app.hub.hub_messages import Request
from sftm_app.hub.hub_process import HubProcess
from sftm_app.preflight.matching import Source as Task
from sftm_app.preflight.preflight import preflight
from sftm_app.units import format_bytes, format_distinct
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint
from sftm_app.weights.hub_names import HubRef, hub_cache

Source = HubRef | Path


@dataclass(frozen=True)
class HubSelection:
    """What a person picked: models on the hub, folders, or both.

    Attributes:
        base: the base; without one the tasks are only downloaded.
        tasks: pairs of name and source.
        notes: sentences about texts that could have meant two things.
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
        """The models on the hub, each once, in order."""
        return tuple(source for source in self.sources if isinstance(source, HubRef))


@dataclass(frozen=True)
class HubModel:
    """A model whose headers were read.

    Attributes:
        source: where it comes from.
        checkpoint: its config and headers. Its path may be gone.
        download: what to download; None if it is on this machine already.
    """

    source: Source
    checkpoint: Checkpoint
    download: Download | None

    @property
    def kind(self) -> str:
        """The model's class, or that it is an adapter."""
        adapter = self.checkpoint.adapter
        return self.checkpoint.architecture if adapter is None else f"LoRA adapter, rank {adapter.r}"


@dataclass(frozen=True)
class Look:
    """What the headers tell.

    Attributes:
        chosen: the selection.
        models: every model of it, in order.
        folders: the models that are on this machine already.
        problems: sentences against a merge or a download.
        notes: sentences worth knowing.
        free_bytes: the free space of the cache's disk.
    """

    chosen: HubSelection
    models: tuple[HubModel, ...]
    folders: dict[Source, Path]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """The size of the download."""
        return sum(model.download.missing_bytes for model in self.models if model.download)

    def summary(self) -> list[str]:
        """One line per model, and one on the download."""
        lines = [
            f"{one.source}{f' at {one.download.commit[:12]}' if one.download else ''}: {one.kind}, "
            f"{one.checkpoint.n_parameters / 1e6:.3g} M parameters in {', '.join(one.checkpoint.dtypes)}, "
            f"{format_bytes(one.download.missing_bytes) + ' to download' if one.download else 'on this machine'}"
            for one in self.models
        ]
        return [*lines, f"Download: {format_bytes(self.missing_bytes)}. Free: {format_bytes(self.free_bytes)}."]

    def require(self) -> Look:
        """Return this, if there is no problem.

        Raises:
            CompatibilityError: holds every problem.
        """
        if self.problems:
            raise CompatibilityError(self.problems)
        return self


def look(chosen: HubSelection, hub: HubProcess, architectures: ArchitectureCache | None = None) -> Look:
    """Read configs and headers of everything chosen and compare them.

    Raises:
        CompatibilityError: models cannot be found, accessed or opened; names every one of them.
        Cancelled, JobError: see HubProcess.
    """
    cache = hub_cache()
    with tempfile.TemporaryDirectory(prefix="sftm-hub-") as temporary:
        skeletons = Path(temporary).resolve()
        local: dict[Source, Path] = {source: source for source in chosen.sources if isinstance(source, Path)}
        downloads: dict[Source, Download] = {}
        folders = dict(local)
        notes, refused = list(chosen.notes), []
        for answer in hub.answers(Request(cache, chosen.refs, skeletons)) if chosen.refs else ():
            ref = chosen.refs[answer.index]
            if answer.download:
                folders[ref], downloads[ref] = skeletons / str(answer.index), answer.download
                notes += [answer.download.note] if answer.download.note else []
            elif answer.folder:
                folders[ref] = local[ref] = answer.folder
                notes.append(f"{ref}: the hub cannot be reached, so the copy in its cache is used.")
            else:
                refused.append(answer.message)
        if refused:
            raise CompatibilityError(sorted(refused))
        opened, problems, found_notes = _compare(chosen, folders, architectures)
    free = _free_bytes(cache)
    problems += _space_problem(cache, sum(download.missing_bytes for download in downloads.values()), free)
    models = tuple(HubModel(source, opened[source], downloads.get(source)) for source in chosen.sources)
    return Look(chosen, models, local, tuple(problems), (*notes, *found_notes), free)


def _compare(
    chosen: HubSelection, folders: dict[Source, Path], architectures: ArchitectureCache | None
) -> tuple[dict[Source, Checkpoint], list[str], list[str]]:
    """Open the models and compare them. Returns the checkpoints, problems and notes."""

    def named(text: str) -> str:
        # Skeletons are in temporary folders: show the models' names instead. The path of one may begin another's.
        for source, folder in sorted(folders.items(), key=lambda item: -len(str(item[1]))):
            text = text.replace(str(folder), str(source))
        return text

    try:
        opened = {source: open_checkpoint(folders[source]) for source in chosen.sources}
        if chosen.base is None:
            return opened, [], []
        tasks = [Task(name, opened[source]) for name, source in chosen.tasks]
        found = preflight(opened[chosen.base], tasks, architectures=architectures)
    except SFTMError as error:
        raise CompatibilityError([named(line) for line in str(error).split("\n")]) from None
    # Tokenizers are compared when they are there; what their absence suggests may be wrong.
    problems = [named(text) for text in found.problems if text not in found.tokenizers.problems]
    return opened, problems, [named(text) for text in found.notes]


def _free_bytes(cache: Path) -> int:
    existing = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


def _space_problem(cache: Path, needed: int, free: int) -> list[str]:
    if needed <= free:
        return []
    takes, left = format_distinct(needed, free)
    return [
        f"The download takes {takes}, but {cache} has {left} left. Free some space, or set HF_HOME to a folder on "
        "another disk and restart."
    ]
