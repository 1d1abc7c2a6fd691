"""Where the labelled samples of a workspace come from: a person's own, the demo's, or a folder next to the base."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sftm_app.errors import SFTMError
from sftm_app.evaluation.labelled import chats_at
from sftm_app.evaluation.measuring import Benchmark
from sftm_app.ui.comparisons import Conditions
from sftm_app.ui.evaluate.labelled import all_samples, first_limit
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.evaluate.sample_sets import SampleSet
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.workspace import Workspace

# Samples next to a base: a folder of this name with samples per task, as where the person enters a path.
BESIDE = "samples"
# What the workspace remembers of it.
PART = "samples"
MOST_LISTED = 20_000


@dataclass(frozen=True)
class Source:
    """Labelled samples to measure on.

    Attributes:
        where: the path of a person's own samples; empty for the demo's.
        limit: samples per task at most.
        names: class names that the person wrote, for models without classes of their own.
        chat: whether texts are put into the chat template; None to leave that to the models.
    """

    where: str = ""
    limit: int = 0
    names: tuple[str, ...] | None = None
    chat: bool | None = None


def known_source(studio: Studio, ws: Workspace) -> Source | None:
    """The samples of a workspace that are known without asking: those used last, the demo's, or those next to the base.

    Returns:
        Where they are; None if there are none.
    """
    if not studio.usable(ws):
        return None
    limit = first_limit(family_of(studio, ws, ws.task_names[0]))
    used = _remembered(studio, ws)
    if used is not None:
        return used
    if studio.pack(ws) is not None:
        return Source(limit=limit)
    beside = Path(ws.base).parent / BESIDE
    with contextlib.suppress(SFTMError):
        if beside.is_dir():
            return Source(str(allowed(studio.settings, str(beside))), limit)
    return None


def remember(studio: Studio, ws: Workspace, source: Source) -> None:
    """Keep where the samples of a workspace are."""
    studio.keeper.put(ws, PART, json.dumps(asdict(source)))


def _remembered(studio: Studio, ws: Workspace) -> Source | None:
    with contextlib.suppress(ValueError, TypeError, KeyError, SFTMError):
        found = json.loads(studio.keeper.get(ws, PART) or "null")
        names, chat = found["names"], found["chat"]
        where = str(allowed(studio.settings, found["where"])) if found["where"] else ""
        if (where and os.path.exists(where)) or (not where and studio.pack(ws) is not None):
            return Source(where, int(found["limit"]), tuple(map(str, names)) if names else None, chat)
    return None


def benchmark_of(
    studio: Studio, ws: Workspace, source: Source, split_fused: bool = False
) -> tuple[Conditions, Benchmark]:
    """Read the samples, ready to measure models on them.

    Args:
        source: where they are.
        split_fused: how merges in memory are planned, as in a recipe.

    Raises:
        SampleError, InputError: no task has any, or base and tasks do not fit.
    """
    found = studio.preflight(ws).require()
    chat = source.chat
    if chat is None:
        # A demo's samples are whole prompts; a person's message to a chat model needs its template.
        chat = studio.pack(ws) is None and family_of(studio, ws, ws.task_names[0]) is not None and chats_at(found, 0)
    samples, left_out = all_samples(studio, ws, source.where, source.names, chat)
    used = {task: one.subset(source.limit) for task, one in samples.items()}
    conditions = Conditions(source.where.strip(), source.limit, split_fused, tuple(left_out))
    return conditions, Benchmark(found, used, studio.session, split_fused, studio.answers)


def sample_set(studio: Studio, ws: Workspace, source: Source) -> SampleSet:
    """What is known of samples; they are read where that is not kept yet, or where a file changed.

    Raises:
        SampleError, InputError: as `benchmark_of`.
    """
    key = workspace_key(ws), source, _stamp(studio, source.where)
    known = studio.sample_sets.get(key)
    if known is None:
        conditions, benchmark = benchmark_of(studio, ws, source)
        counts = {task: len(one) for task, one in benchmark.samples.items()}
        known = SampleSet(benchmark.digests, counts, conditions.left_out)
        studio.sample_sets.put(key, known)
    return known


def _stamp(studio: Studio, where: str) -> object:
    """Changes whenever a file of the samples is written, added or removed; of very many files, the first ones."""
    if not where.strip():
        return None
    root = allowed(studio.settings, where)
    found: list[tuple[str, int, int]] = []
    for place in [root] if root.is_file() else (Path(at, name) for at, _, names in os.walk(root) for name in names):
        with contextlib.suppress(OSError):
            status = place.stat()
            found.append((str(place), status.st_size, status.st_mtime_ns))
        if len(found) >= MOST_LISTED:
            break
    return tuple(sorted(found))
