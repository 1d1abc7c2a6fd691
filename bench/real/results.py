"""What is measured, kept as small JSON files next to the models, so that every stage can be resumed.

    merges/<settings>.json   the settings, the digest of the merged model, its figures
    correct/<digest>.json    for each task and part, one 0 or 1 per sample
    cost/<settings>.json     seconds and memory

A model is identified by a digest of its tensors. If a method changes, its merges are made again (`remerge`), but only
models that come out different are measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.real.bench import Bench, Settings
from bench.real.merging import (
    Merged,
    Workplace,
    base_state,
    cost,
    digest,
    individual_models,
    merge,
    merged_models,
)
from bench.real.stages import measured, write_json
from sftm_app.methods import get_method
from sftm_app.methods.params import make_params

Case = tuple[str, str]  # a task, and "test", "validation" or an unseen set
Correct = dict[Case, NDArray[np.bool_]]
BASE, INDIVIDUAL = "base", "individual"


def settings_key(names: Sequence[str], chosen: Settings) -> str:
    """The file name of a merge: the method, and a hash of all its parameters and of the tasks."""
    params = asdict(make_params(get_method(chosen.method).params, dict(chosen.params), chosen.method))
    text = json.dumps([chosen.method, params, list(names)], sort_keys=True, default=str)
    return f"{chosen.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def correctness(place: Workplace, model: str | Settings, cases: Sequence[Case], remerge: bool = False) -> Correct:
    """On which samples a model is right; measured where that is not kept.

    Args:
        place: the base and the tasks.
        model: "base", "individual", or the settings of a merge.
        cases: tasks and parts.
        remerge: merge again even if these settings were merged before.
    """
    if isinstance(model, Settings):
        return _merged_correctness(place, model, cases, remerge)
    if model == INDIVIDUAL:
        return _fill(place.bench, INDIVIDUAL, cases, lambda tasks: individual_models(place, tasks))
    return _fill(place.bench, BASE, cases, lambda tasks: merged_models(place, base_state(place), BASE, tasks))


def _merged_correctness(place: Workplace, chosen: Settings, cases: Sequence[Case], remerge: bool) -> Correct:
    path = place.bench.home / "merges" / f"{settings_key(place.names, chosen)}.json"
    made: list[Merged] = []

    def merged() -> Merged:
        if not made:
            print(f"{place.bench.name}: merging {len(place.names)} tasks by {chosen}", flush=True)
            made.append(merge(place, chosen))
        return made[0]

    def describe() -> dict[str, Any]:
        found = {"settings": str(chosen), "tasks": list(place.names), "model": digest(merged().tensors)}
        extras = place.bench.extras(merged().tensors) if place.bench.extras else {}
        return found | {"figures": merged().figures | dict(extras)}

    if remerge:
        path.unlink(missing_ok=True)
    about = measured(path, describe)
    if not made and known(place.bench, about["model"], cases) is None:
        # The method may have changed since: what is measured now must not be kept as that of the earlier model.
        about = describe()
        write_json(path, about)
    return _fill(
        place.bench, about["model"], cases, lambda tasks: merged_models(place, merged().tensors, str(chosen), tasks)
    )


def merge_cost(place: Workplace, chosen: Settings) -> dict[str, float]:
    """What a merge takes; see `merging.cost`."""
    path = place.bench.home / "cost" / f"{settings_key(place.names, chosen)}.json"
    found: dict[str, float] = measured(path, lambda: cost(place, chosen))
    return found


def _fill(
    bench: Bench,
    key: str,
    cases: Sequence[Case],
    models: Callable[[Sequence[str]], Iterable[tuple[str, Any]]],
) -> Correct:
    """Read what was measured of a model, and measure the rest, task by task."""
    path = bench.home / "correct" / f"{key}.json"
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = {f"{task}.{part}": (task, part) for task, part in cases}
    tasks = list(dict.fromkeys(task for name, (task, _) in wanted.items() if name not in kept))
    for task, model in models(tasks) if tasks else ():
        for name, (owner, part) in wanted.items():
            if owner == task and name not in kept:
                kept[name] = "".join(str(int(right)) for right in bench.correct(model, task, part))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, kept)
    return {case: _bits(kept[name]) for name, case in wanted.items()}


def stored(place: Workplace, model: str | Settings, cases: Sequence[Case]) -> Correct | None:
    """What was measured of a model before, or None if anything is missing. Arguments as for `correctness`."""
    about = stored_merge(place, model) if isinstance(model, Settings) else {"model": model}
    return known(place.bench, about["model"], cases) if about else None


def known(bench: Bench, model: str, cases: Sequence[Case]) -> Correct | None:
    """The same by the digest of a merged model, "base" or "individual"."""
    path = bench.home / "correct" / f"{model}.json"
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if any(f"{task}.{part}" not in kept for task, part in cases):
        return None
    return {(task, part): _bits(kept[f"{task}.{part}"]) for task, part in cases}


def stored_merge(place: Workplace, chosen: Settings) -> dict[str, Any] | None:
    """The digest and the figures of a merge that was made before, or None."""
    return _stored(place, "merges", chosen)


def stored_cost(place: Workplace, chosen: Settings) -> dict[str, Any] | None:
    """What a merge took, if that was measured before."""
    return _stored(place, "cost", chosen)


def _stored(place: Workplace, folder: str, chosen: Settings) -> dict[str, Any] | None:
    path = place.bench.home / folder / f"{settings_key(place.names, chosen)}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def all_merges(bench: Bench) -> list[dict[str, Any]]:
    """What is kept of every merge of a bench: its settings, tasks, digest and figures."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((bench.home / "merges").glob("*.json"))]


def _bits(text: str) -> NDArray[np.bool_]:
    return np.array([bit == "1" for bit in text])
