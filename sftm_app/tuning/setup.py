"""What a search is made of, and the folder that belongs to it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sftm_app import __version__
from sftm_app.caching import write_text
from sftm_app.errors import SampleError
from sftm_app.evaluation.answer_store import AnswerStore, samples_digest
from sftm_app.evaluation.candidates import Candidate, method_candidate
from sftm_app.evaluation.measuring import Benchmark
from sftm_app.evaluation.samples import Samples
from sftm_app.methods import METHODS, get_method
from sftm_app.methods.base import refuse_task_count
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session
from sftm_app.tuning.space import Space
from sftm_app.tuning.split import split_samples
from sftm_app.weights.disk_cache import digest, file_key
from sftm_app.weights.regular import read_file

# The folder of all searches, in the output folder.
SEARCHES_NAME = "searches"
ABOUT_NAME = "search.json"
ANSWERS_NAME = "answers"
# Samples of a task in each part, unless a person says otherwise.
LIMIT = 100


@dataclass(frozen=True, eq=False)
class Setup:
    """What is searched, on what.

    Attributes:
        found: base and tasks.
        space: the settings.
        validation, test: by task, the samples to choose on and those to report on.
        session: its device and caches are used.
        folder: where the trials are. It belongs to these files, samples and settings.
        own: a person's own settings, tried first.
        split_fused: how merges are planned, as in a recipe.
    """

    found: Preflight
    space: Space
    validation: Mapping[str, Samples]
    test: Mapping[str, Samples]
    session: Session
    folder: Path
    own: MergeSettings | None = None
    split_fused: bool = False

    @cached_property
    def choosing(self) -> Benchmark:
        """The validation samples, ready to measure with."""
        return self._benchmark(self.validation)

    @cached_property
    def reporting(self) -> Benchmark:
        """The test samples, ready to measure with."""
        return self._benchmark(self.test)

    def _benchmark(self, samples: Mapping[str, Samples]) -> Benchmark:
        return Benchmark(self.found, samples, self.session, self.split_fused, AnswerStore(self.folder / ANSWERS_NAME))

    def candidate(self, settings: MergeSettings) -> Candidate:
        """The merge with these settings."""
        default = values_of(type(settings.params)())
        changed = {name: value for name, value in values_of(settings.params).items() if value != default[name]}
        weights = None if settings.weights == self.space.weights else settings.weights
        return method_candidate(settings.method, changed, weights)


def make_setup(
    found: Preflight,
    samples: Mapping[str, Samples],
    session: Session,
    searches: Path,
    methods: Sequence[str] = (),
    weighted: bool = True,
    limit: int | None = LIMIT,
    own: MergeSettings | None = None,
    split_fused: bool = False,
) -> Setup:
    """Split the samples, and find the folder of the search.

    Args:
        found: base and tasks; the tasks' weights are those of trials that choose none.
        samples: labelled, by task. Tasks without any are merged too, but do not count.
        session: what may be used.
        searches: the folder of all searches.
        methods: those to search; by default all that merge this number of tasks.
        weighted: whether one weight per task is searched too.
        limit: how many samples of a task to choose on at most, and as many to report on; None for all.
        own: a person's own settings, tried first.
        split_fused: as in a recipe.

    Raises:
        RecipeError: a method is unknown, or does not merge this number of tasks.
        SampleError: a task has too few samples.
    """
    tasks = tuple(task.name for task in found.tasks)
    if not samples:
        raise SampleError("No task has labelled samples. Give some, so that there is something to choose by.")
    for name in methods:
        refuse_task_count(get_method(name), len(tasks))
    # In the table's order, so that the same methods are the same search.
    chosen = tuple(name for name in METHODS if name in (methods or fitting_methods(len(tasks))))
    weights = tuple(task.weight for task in found.tasks)
    space = Space(chosen, tasks, weights, weighted and len(tasks) > 1)
    validation, test = split_samples(samples, limit)
    key = _key(found, space, validation, test, split_fused)
    return Setup(found, space, validation, test, session, searches / key, own, split_fused)


def fitting_methods(n_tasks: int) -> tuple[str, ...]:
    """The names of the methods that merge this many tasks, in the table's order."""
    return tuple(name for name, method in METHODS.items() if method.n_tasks in (None, n_tasks))


def _key(
    found: Preflight, space: Space, validation: Mapping[str, Samples], test: Mapping[str, Samples], split_fused: bool
) -> str:
    """Changes whenever trials of before could not be compared with new ones."""
    files = [
        sorted(file_key(path, stamp) for path, stamp in one.stamps.items())
        for one in (found.base, *(task.checkpoint for task in found.tasks))
    ]
    samples = [(task, samples_digest(one)) for part in (validation, test) for task, one in part.items()]
    known = [(method, space.distributions(method)) for method in space.methods]
    roles = sorted((name, repr(owner)) for name, owner in found.architecture.owners.items())
    return digest("search", __version__, files, roles, samples, space, known, split_fused)[:16]


@dataclass(frozen=True)
class About:
    """What a folder's search is, for those who look for it.

    Attributes:
        models: identifies base and tasks, in the words of whoever wrote it.
        methods, weighted, limit: as of `make_setup`.
        where: the path of the samples; empty for a demo's.
        trials: how many were asked for.
        split_fused: as of `make_setup`.
    """

    models: str
    methods: tuple[str, ...]
    weighted: bool
    limit: int | None
    where: str
    trials: int
    split_fused: bool = False


_ABOUT: TypeAdapter[About] = TypeAdapter(About)


def write_about(folder: Path, about: About) -> None:
    """Write what a folder's search is. If that fails, it is not found after a restart; so that is not reported."""
    with contextlib.suppress(OSError):
        write_text(folder / ABOUT_NAME, _ABOUT.dump_json(about).decode())


def find_about(searches: Path, models: str) -> list[About]:
    """The searches of these models, latest first; folders that cannot be read are left out."""
    found: list[tuple[float, About]] = []
    for file in searches.glob(f"*/{ABOUT_NAME}"):
        with contextlib.suppress(OSError, ValidationError):
            found.append((file.stat().st_mtime, _ABOUT.validate_json(read_file(file))))
    return [about for _, about in sorted(found, key=lambda one: -one[0]) if about.models == models]
