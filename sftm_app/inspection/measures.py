"""What the map is coloured by: one number per layer, and one for each of its tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.inspection.what_if import WhatIf
from sftm_app.linalg.factors import Rank, rank_for_energy
from sftm_app.linalg.overlap import effective_rank, energy_overlap
from sftm_app.methods import get_method
from sftm_app.methods.settings import MergeSettings


@dataclass(frozen=True)
class MeasureValue:
    """A measure of one layer.

    Attributes:
        overall: of the layer.
        tasks: one per member of the layer; for a measure of the layer as a whole, the overall value again.
    """

    overall: float
    tasks: tuple[float, ...]


@dataclass(frozen=True)
class Measure:
    """A measure of layers.

    Attributes:
        name: in links and files.
        title, help: for the screen.
        compute: (what_if, settings) -> value.
        number: how its values are written, as a Python format.
        of_method: whether it depends on the settings of the merge.
        log: whether its values span orders of magnitude.
    """

    name: str
    title: str
    help: str
    compute: Callable[[WhatIf, MergeSettings], MeasureValue]
    number: str = ".3g"
    of_method: bool = False
    log: bool = False


def relative_change(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """||D_t|| / ||W_0|| (Frobenius), >= 0, infinite for a base of zeros. Overall: the mean."""
    made = what_if.made
    sizes = [float(torch.linalg.vector_norm(f.S)) for f in made.factors]
    return _mean_of([size / made.base_norm if made.base_norm else math.inf for size in sizes])


def effective_ranks(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Effective rank as a share of min(m, n), 0..1. Overall: the mean."""
    return _mean_of([effective_rank(f.S) / min(f.shape) for f in what_if.made.factors])


def ranks_for_90(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Fewest features that hold 90 % of the energy, 0..min(m, n). Overall: the mean."""
    return _mean_of([rank_for_energy(f.S, 0.9) for f in what_if.made.factors])


def read_overlap(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Energy overlap of read directions, 0..1: per task the mean over the others, 0 for a single task.

    Overall: the mean over pairs.
    """
    return _of_pairs(energy_overlap([f.Vh.T for f in what_if.made.factors], [f.S for f in what_if.made.factors]))


def write_overlap(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """The same for write directions."""
    return _of_pairs(energy_overlap([f.U for f in what_if.made.factors], [f.S for f in what_if.made.factors]))


def interference(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """||A - I||_F / sqrt(R), >= 0; per task over its features' rows of A."""
    return MeasureValue(*what_if.interference)


def condition(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Condition of A at the rank of the settings, >= 1, an estimate; of the layer as a whole."""
    value = what_if.condition(rank_of(settings))
    return MeasureValue(value, (value,) * len(what_if.made.factors))


def readout_error(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Readout error of the merge, >= 0. Overall: the mean."""
    return _mean_of(what_if.predict(settings).readout_errors)


def mapping_error(what_if: WhatIf, settings: MergeSettings) -> MeasureValue:
    """Mapping error of the merge, >= 0. Overall: the mean."""
    return _mean_of(what_if.predict(settings).mapping_errors)


def rank_of(settings: MergeSettings) -> Rank:
    """The rank that the settings keep; full for methods that ask for no features."""
    method = get_method(settings.method)
    return method.features(settings.params) if method.features else None


def _of_pairs(table: Tensor) -> MeasureValue:
    """Means of the entries off the diagonal of (T, T), row by row and overall."""
    rows, count = (table.sum(1) - table.diagonal()).tolist(), len(table)
    return _mean_of([row / (count - 1) if count > 1 else 0.0 for row in rows])


def _mean_of(values: Sequence[float]) -> MeasureValue:
    return MeasureValue(sum(values) / len(values) if values else 0.0, tuple(float(value) for value in values))


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            "change",
            "Relative change",
            "The size of the task matrices relative to the base's weight: ‖D‖ / ‖W₀‖.",
            relative_change,
            ".1%",
            log=True,
        ),
        Measure(
            "effective_rank",
            "Effective rank",
            "How many directions the task matrices really use, as a share of all: near 0 for one, 1 for all equally.",
            effective_ranks,
            ".1%",
        ),
        Measure(
            "rank_90",
            "Rank for 90 % energy",
            "How many of a task's features hold 90 % of its energy. If there are few, a low rank loses little.",
            ranks_for_90,
            ".0f",
        ),
        Measure(
            "read_overlap",
            "Read overlap",
            "How similar the input directions of two tasks are, weighted by energy: 1 means the same directions with "
            "the same shares, 0 none in common.",
            read_overlap,
            ".2f",
        ),
        Measure(
            "write_overlap",
            "Write overlap",
            "How similar the output directions of two tasks are, weighted by energy: 1 means the same directions with "
            "the same shares, 0 none in common.",
            write_overlap,
            ".2f",
        ),
        Measure(
            "interference",
            "Interference",
            "How much features of other tasks disturb a feature, all at unit gain: ‖A − I‖ / √R over all R features. "
            "0 means not at all.",
            interference,
        ),
        Measure(
            "condition",
            "Condition",
            "How hard it is to keep all features apart at the chosen rank (an estimate). 1 is easy; a large value "
            "means that some features of different tasks are nearly the same.",
            condition,
            of_method=True,
            log=True,
        ),
        Measure(
            "readout_error",
            "Readout error",
            "How far the chosen merge is from keeping the gain of each task's features: 0 keeps all, 1 is as bad as "
            "adding nothing.",
            readout_error,
            of_method=True,
        ),
        Measure(
            "mapping_error",
            "Mapping error",
            "How far the chosen merge is from what each task does on its own inputs, including what other tasks leak "
            "in: 0 keeps all, 1 is as bad as adding nothing.",
            mapping_error,
            of_method=True,
        ),
    )
}
