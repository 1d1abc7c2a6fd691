"""Every merge of a workspace, finished runs and saved models, with the names and notes that a person gives them.

A small file beside the runs holds the name, the notes and the colour of each. One that cannot be read counts for
nothing, and so does a run that cannot.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cachetools import LRUCache
from pydantic import BaseModel, Field, ValidationError

from sftm_app.caching import write_text
from sftm_app.errors import InputError, OutputError, SFTMError
from sftm_app.evaluation.candidates import Candidate, folder_candidate
from sftm_app.evaluation.model_keys import merge_id
from sftm_app.jobs.folder import RunFolder, list_runs
from sftm_app.output.report import Report, load_report
from sftm_app.output.side_files import RECIPE_NAME
from sftm_app.planning.recipe import Recipe, load_recipe
from sftm_app.ui.naming import distinct_names
from sftm_app.ui.settings import Settings
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.regular import read_file

FOLDER = "merges"
MOST_NAME, MOST_NOTES = 120, 4000
MERGES_KEPT = 1000


class About(BaseModel, frozen=True):
    """What a person says of a merge, and which colour it has. place: counted from 0; -1 until it is given."""

    name: Annotated[str, Field(max_length=MOST_NAME)] = ""
    notes: Annotated[str, Field(max_length=MOST_NOTES)] = ""
    place: Annotated[int, Field(ge=-1, lt=10_000)] = -1


@dataclass(frozen=True)
class Merge:
    """One merge.

    Attributes:
        id: identifies it, also where a copy of it was saved.
        run: its run; None for a saved model whose run is gone.
        saved: the folders that it was saved to.
        recipe: what was asked for.
        report: what was done.
        made_ns: when its report was written, for the order of those of one second.
        settings_name: see `naming.distinct_names`.
        about: its name and notes.
    """

    id: str
    run: RunFolder | None
    saved: tuple[Path, ...]
    recipe: Recipe
    report: Report
    made_ns: int = 0
    settings_name: str = ""
    about: About = About()

    @property
    def folder(self) -> Path:
        """The merged model."""
        return self.run.model if self.run else self.saved[0]

    @property
    def name(self) -> str:
        """The name that a person gave it, otherwise its settings."""
        return self.about.name or self.settings_name

    @property
    def candidate(self) -> Candidate:
        """The merge as a model to try."""
        return folder_candidate(self.folder, self.name, self.recipe.method, self.about.place)


class Merges:
    """The merges below the output folder, and what a person says of them.

    Args:
        settings: where runs and saved models are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Reports of large models are long, and the list is shown often.
        self._read_before: LRUCache[object, Merge] = LRUCache(MERGES_KEPT)
        self._lock = threading.Lock()

    def of(self, ws: Workspace) -> list[Merge]:
        """The merges of a workspace's checkpoints, oldest first. What cannot be read is left out."""
        found: dict[str, Merge] = {}
        for one in [*self._finished(ws), *self._saved(ws)]:
            known = found.get(one.id)
            found[one.id] = replace(known, saved=(*known.saved, *one.saved)) if known else one
        merges = sorted(found.values(), key=lambda one: (one.report.created, one.made_ns, one.id))
        names = distinct_names([one.recipe for one in merges])
        named = [replace(m, settings_name=n, about=self._about(m.id)) for m, n in zip(merges, names, strict=True)]
        return self._coloured(named)

    def find(self, ws: Workspace, merge: str) -> Merge:
        """A merge of the workspace by its id, which may come from a browser. Raises InputError: there is none."""
        found = next((one for one in self.of(ws) if one.id == merge), None)
        if found is None:
            raise InputError("This merge is not there any more. Choose another one from the leaderboard.")
        return found

    def describe(self, merge: Merge, name: str, notes: str) -> None:
        """Keep a name and notes. A name that is empty, or that says the settings, is that of the settings.

        Raises:
            OutputError: the text is too long, or cannot be written.
        """
        given = " ".join(name.split())
        try:
            about = About(
                name="" if given == merge.settings_name else given, notes=notes.strip(), place=merge.about.place
            )
        except ValidationError:
            raise OutputError(
                f"A name may have {MOST_NAME} characters, notes {MOST_NOTES}. These have {len(given)} and "
                f"{len(notes.strip())}. Shorten them."
            ) from None
        self._write(merge.id, about)

    def forget(self, merge: Merge) -> None:
        """Remove the name and the notes of a merge that was deleted."""
        with contextlib.suppress(OSError):
            self._file(merge.id).unlink(missing_ok=True)

    def _finished(self, ws: Workspace) -> Iterator[Merge]:
        for run in list_runs(self._settings.runs_dir):
            with contextlib.suppress(SFTMError, OSError):
                found = self._read(run.model, run)
                if _inputs(found.recipe) == ws.inputs:
                    yield found

    def _saved(self, ws: Workspace) -> Iterator[Merge]:
        with contextlib.suppress(OSError):
            for folder in sorted(self._settings.saved_dir.iterdir()):
                with contextlib.suppress(SFTMError, OSError):
                    found = self._read(folder, None)
                    if _inputs(found.recipe) == ws.inputs:
                        yield found

    def _read(self, folder: Path, run: RunFolder | None) -> Merge:
        """A merge from its files. Raises SFTMError, OSError: they are damaged, or the merge is not done."""
        # A model appears complete or not at all, and its report with it.
        made_ns = (folder / REPORT_NAME).stat().st_mtime_ns
        key = folder, made_ns
        with self._lock:
            known = self._read_before.get(key)
        if known is None:
            recipe = run.recipe() if run else load_recipe(folder / RECIPE_NAME)
            saved = () if run else (folder,)
            known = Merge(merge_id(folder), run, saved, recipe, load_report(folder / REPORT_NAME), made_ns)
            with self._lock:
                self._read_before[key] = known
        return known

    def _coloured(self, merges: list[Merge]) -> list[Merge]:
        """Give each merge the first colour that no other one has, and keep it: it stays when others are deleted."""
        taken = {one.about.place for one in merges}
        free = (place for place in range(10_000) if place not in taken)
        found = []
        for one in merges:
            if one.about.place < 0:
                one = replace(one, about=one.about.model_copy(update={"place": next(free)}))
                with contextlib.suppress(OutputError):  # then it is given the same one next time
                    self._write(one.id, one.about)
            found.append(one)
        return found

    def _about(self, merge: str) -> About:
        with contextlib.suppress(OSError, ValidationError, UnicodeDecodeError):
            return About.model_validate_json(read_file(self._file(merge)).decode())
        return About()

    def _write(self, merge: str, about: About) -> None:
        try:
            write_text(self._file(merge), about.model_dump_json())
        except OSError as error:
            raise OutputError(f"{self._file(merge)}: cannot be written ({error.strerror}). Free some space.") from None

    def _file(self, merge: str) -> Path:
        return self._settings.output_dir / FOLDER / f"{merge}.json"


def _inputs(recipe: Recipe) -> tuple[str, ...]:
    return recipe.base, *(task.path for task in recipe.tasks)
