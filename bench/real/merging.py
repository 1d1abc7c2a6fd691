"""Base, individual and merged models of a bench, in memory and through the app's own steps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from bench.real.bench import Bench, Settings
from bench.real.objectives import Yardstick, objectives
from sftm_app.engine.records import TensorRecord
from sftm_app.engine.run import run
from sftm_app.evaluation.task_model import individual_parts, merged_parts
from sftm_app.evaluation.task_tensors import read_all
from sftm_app.output.meter import MemoryMeter
from sftm_app.pipeline import prepare
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session

CPU = torch.device("cpu")
State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Workplace:
    """Base and tasks of one bench, opened and compared once.

    Attributes:
        bench: whose models they are.
        names: the tasks that are merged.
        found: the comparison.
        session: what the merges may use.
        yardsticks: what the figures need of the tasks, by linear map; filled by the first merge.
    """

    bench: Bench
    names: tuple[str, ...]
    found: Preflight
    session: Session
    yardsticks: dict[str, Yardstick] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Merged:
    """A merge in memory.

    Attributes:
        tensors: by the base's names.
        figures: readout and mapping error and the objectives, over all linear maps.
    """

    tensors: State
    figures: dict[str, float]


def recipe_of(bench: Bench, names: Sequence[str], chosen: Settings, measure: str = "all") -> Recipe:
    """The recipe that merges some tasks of a bench. measure: see `sftm_app.merge`."""
    entries = [{"path": str(bench.tasks[name]), "name": name} for name in names]
    return make_recipe(bench.base, entries, chosen.method, dict(chosen.params), device="cpu", measure=measure)


def open_workplace(bench: Bench, session: Session, names: Sequence[str] = ()) -> Workplace:
    """Open base and tasks. names: the tasks to merge, all by default."""
    chosen = tuple(names) or tuple(bench.tasks)
    found = open_inputs(recipe_of(bench, chosen, Settings("average")), session).require()
    return Workplace(bench, chosen, found, session)


def merge(place: Workplace, chosen: Settings) -> Merged:
    """Merge in memory, and measure what every linear map keeps of each task."""
    plan = prepare(recipe_of(place.bench, place.names, chosen), place.session, place.found)
    tensors: dict[str, Tensor] = {}
    records: list[TensorRecord] = []
    for merged in run(plan, place.session):
        tensors[merged.entry.name] = merged.tensor
        records += merged.records
    return Merged(tensors, _errors(records) | objectives(plan, tensors, place.yardsticks))


def _errors(records: Sequence[TensorRecord]) -> dict[str, float]:
    kept = [record.figures for record in records if record.figures.readout_errors]
    found: dict[str, float] = {}
    for name, errors in (
        ("readout error", [mean(figures.readout_errors) for figures in kept]),
        ("mapping error", [mean(figures.mapping_errors) for figures in kept]),
    ):
        found |= {name: median(errors)} if errors else {}
    return found


def cost(place: Workplace, chosen: Settings) -> dict[str, float]:
    """What a merge takes with nothing cached and nothing measured: seconds of the processor, and bytes at the peak."""
    session = Session(None, place.session.architectures, place.session.speed, place.session.n_threads)
    plan = prepare(recipe_of(place.bench, place.names, chosen, "none"), session, place.found)
    peak, started = 0, time.process_time()
    with MemoryMeter(CPU) as meter:
        for _ in run(plan, session):
            peak = max(peak, meter.look())
        seconds = time.process_time() - started
        peak = max(peak, meter.look())
    return {"seconds": seconds, "peak_bytes": peak}


def digest(tensors: State) -> str:
    """A hash of a model's tensors: names and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:24]


def base_state(place: Workplace) -> State:
    """The base's tensors."""
    return read_all(place.found.base)


def merged_models(place: Workplace, tensors: State, title: str, tasks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The model of each task in turn: the merged tensors with the task's head."""
    for name in tasks:
        yield name, place.bench.build(merged_parts(place.found, place.names.index(name), tensors, title, CPU))


def individual_models(place: Workplace, tasks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each task's own model in turn."""
    for name in tasks:
        yield name, place.bench.build(individual_parts(place.found, place.names.index(name), CPU))
