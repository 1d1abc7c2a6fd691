"""How fast what-if answers while a control moves: `python -m bench.what_if [--shared 0.2] [--shared-rank 64]`.

Uses layers of 8 full-rank tasks whose gains decay and which share a part of low rank. Prints a Markdown table: for each
control, the time of an answer to a new position, the time with its figure, and the largest difference of its readout
and mapping errors from those of the merge itself. A is computed before, once per layer. Takes about a quarter of an
hour, most of it for the merges that are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.machine import machine_line
from sftm_app.architecture.roles import Part
from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.layers import MapLayer
from sftm_app.inspection.what_if import WhatIf
from sftm_app.linalg.preservation import errors, measure
from sftm_app.linalg.svd import factorise
from sftm_app.methods import get_method
from sftm_app.methods.base import Features, Layer, Merged
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.plots.preservation import ErrorSeries, prediction_bars
from sftm_app.plots.style import method_colour

SHAPES = ((768, 768), (3072, 768), (768, 3072))
N_TASKS = 8
NAMES = [f"task {number + 1}" for number in range(N_TASKS)]
COMPARED = 2


@dataclass(frozen=True)
class Move:
    """One control that moves.

    Attributes:
        method: in words.
        control: in words.
        first: its first position, which is not timed.
        positions: the other positions.
    """

    method: str
    control: str
    first: MergeSettings
    positions: tuple[MergeSettings, ...]


def task_matrices(shape: tuple[int, int], shared: float, shared_rank: int) -> list[Tensor]:
    """Task matrices with gains from 1 to 0.03 along random directions, and a part that all tasks share.

    Args:
        shape: of each.
        shared: the share of energy in the common part.
        shared_rank: its rank.
    """
    generator = torch.Generator().manual_seed(0)

    def along_random_directions(gains: Tensor) -> Tensor:
        U, V = (torch.linalg.qr(torch.randn(size, len(gains), generator=generator)).Q for size in shape)
        return (U * gains / gains.norm()) @ V.T

    common = along_random_directions(torch.logspace(0, -0.5, shared_rank)) * (shared / (1 - shared)) ** 0.5
    gains = torch.logspace(0, -1.5, min(shape))
    return [along_random_directions(gains) + common for _ in range(N_TASKS)]


def moves() -> Iterator[Move]:
    """Every control of every method."""

    def settings(method: str, weights: Sequence[float] = (1.0,) * N_TASKS, **values: Any) -> MergeSettings:
        return merge_settings(method, values, weights)

    def weighted(task: int, weight: float) -> list[float]:
        return [weight if index == task else 1.0 for index in range(N_TASKS)]

    steps = [0.05 * step for step in range(1, 21)]
    ranks: dict[str, list[Any]] = {
        "rank, a count": list(range(8, 768, 40)),
        "rank, a fraction": steps[:-1],
        "rank, a share of energy": [f"{percent}% energy" for percent in (50, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99)],
    }
    for variant, every in (("readout", 1), ("mapping", 4)):
        for rank in (None, 0.5):
            chosen = settings("sftm", variant=variant, rank=rank)
            title = f"SFTM {variant}, rank {rank or 'full'}"
            moved = tuple(replace(chosen, params=replace(chosen.params, scaling=step)) for step in steps)
            yield Move(title, "scaling", chosen, moved)
            few = steps[: 20 if variant == "readout" or rank is None else 3]
            one = tuple(replace(chosen, weights=tuple(weighted(0, step))) for step in few)
            yield Move(title, "one weight", chosen, one)
        for control, given in ranks.items():
            positions = tuple(settings("sftm", variant=variant, rank=rank) for rank in given[::every])
            yield Move(f"SFTM {variant}", control, settings("sftm", variant=variant), positions)
    chosen = settings("sftm", variant="readout")
    each = tuple(replace(chosen, weights=tuple(weighted(task, 0.5))) for task in range(N_TASKS))
    yield Move("SFTM readout, rank full", "a new weight each time", chosen, each)
    chosen = settings("average")
    yield Move("Average", "one weight", chosen, tuple(settings("average", weighted(0, step)) for step in steps))
    chosen = settings("task_arithmetic")
    arithmetic = tuple(settings("task_arithmetic", scaling=step) for step in steps)
    yield Move("Task arithmetic", "scaling", chosen, arithmetic)
    yield Move(
        "Task arithmetic", "one weight", chosen,
        tuple(settings("task_arithmetic", weighted(0, step)) for step in steps),
    )  # fmt: skip


def ask(what_if: WhatIf, settings: MergeSettings) -> tuple[float, float, list[float]]:
    """The milliseconds to the errors, the milliseconds to their figure as it is sent, and the errors."""
    started = time.perf_counter()
    found = what_if.predict(settings)
    answered = time.perf_counter()
    colour = method_colour(settings.method)
    prediction_bars(NAMES, [ErrorSeries(settings.method, colour, found.readout_errors, found.mapping_errors)]).to_json()
    drawn = time.perf_counter()
    return 1e3 * (answered - started), 1e3 * (drawn - started), [*found.readout_errors, *found.mapping_errors]


def merged_errors(what_if: WhatIf, matrices: list[Tensor], settings: MergeSettings) -> list[float]:
    """The errors of the merge itself."""
    factors = what_if.made.factors
    layer = Layer(matrices, settings.weights, what_if.made.read_base, lambda: [Features(f) for f in factors])
    result = get_method(settings.method).merge(layer, settings.params)
    kept = errors(measure(result.delta if isinstance(result, Merged) else result, factors))
    return [*kept.readout, *kept.mapping]


def report(shape: tuple[int, int], shared: float, shared_rank: int) -> None:
    """Print the rows of one layer."""
    m, n = shape
    name = f"{m} × {n}"
    matrices = task_matrices(shape, shared, shared_rank)
    started = time.perf_counter()
    factors = tuple(factorise(matrix) for matrix in matrices)
    factorised = time.perf_counter()
    layer = MapLayer("layer", "0", "layer", shape, "layer", Part(), tuple(range(N_TASKS)))
    what_if = WhatIf(LayerFactors(layer, 1.0, factors, lambda: torch.ones(shape)))
    first = what_if.predict(merge_settings("sftm", {"variant": "readout"}, (1.0,) * N_TASKS))
    asked = time.perf_counter()
    n_features = sum(f.rank for f in factors)
    print(f"| {name} | | the tasks' factors, {n_features} features | {factorised - started:.1f} s | | | |")
    print(f"| {name} | | A and the first answer, condition {first.condition:.3g} | {asked - factorised:.1f} s | | | |")
    for move in moves():
        ask(what_if, move.first)
        measured = [(*ask(what_if, settings), settings) for settings in move.positions]
        answers, figures = [row[0] for row in measured], [row[1] for row in measured]
        apart = 0.0
        for _, _, predicted, settings in measured[:: max(1, len(measured) // COMPARED)]:
            wanted = merged_errors(what_if, matrices, settings)
            apart = max([apart, *(abs(one - other) for one, other in zip(predicted, wanted, strict=True))])
        print(
            f"| {name} | {move.method} | {move.control} | {statistics.median(answers):.1f} ms | {max(answers):.0f} ms "
            f"| {statistics.median(figures):.1f} ms ({max(figures):.0f} ms) | {apart:.0e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=float, default=0.2, help="share of each task's energy in the common part")
    parser.add_argument("--shared-rank", type=int, default=64, help="rank of that common part")
    parser.add_argument("--shape", help="only this layer, such as 768x768")
    options = parser.parse_args()
    shapes = [tuple(map(int, options.shape.split("x")))] if options.shape else SHAPES
    print(f"{machine_line()}\n")
    print("| layer | method | control | answer, median | worst | with its figure (worst) | differs from the merge by |")
    print("|---|---|---|---:|---:|---:|---:|")
    with torch.inference_mode():
        for m, n in shapes:
            report((m, n), options.shared, options.shared_rank)


if __name__ == "__main__":
    main()
