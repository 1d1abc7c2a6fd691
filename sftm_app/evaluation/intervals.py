"""How far a score could be off because of the choice of samples: the bootstrap over samples, and over seeds.

    m* = mean over tasks and seeds of the mean of n_t scores drawn with replacement from the n_t scores of task t

The interval holds the middle 95 % of m* (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Every model
answers the same samples, and the same draws are used for all models, so differences and ratios of models that err on
the same samples vary less than each model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_DRAWS = 2000
LEVEL = 0.95

Vector = NDArray[np.float64]
# By task: whether a model answered each sample correctly.
Correct = Mapping[str, Sequence[bool]]
# Per seed and task, a score for each sample. A task's samples are the same for every seed.
Table = Sequence[Sequence[NDArray[np.bool_]]]


@dataclass(frozen=True)
class Interval:
    """A value and its interval: 95 % of the draws lie between `low` and `high`."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies in the interval: a difference of two models may be chance then."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap draws, the same for every model, so that differences are paired.

    Attributes:
        counts: per task, how often each draw takes each sample, as a share of the samples: float64 (draws, samples).
        seeds: how often each draw takes each seed, float64 (draws, seeds), rows sum to 1.
    """

    counts: tuple[NDArray[np.float64], ...]
    seeds: NDArray[np.float64]

    def positions(self, task: int) -> NDArray[np.int64]:
        """The samples that each draw takes, int64 (draws, samples), for scores that are no means over samples."""
        counts = self.counts[task]
        times = np.rint(counts * counts.shape[1]).astype(np.int64)
        drawn: NDArray[np.int64] = np.repeat(np.tile(np.arange(times.shape[1]), len(times)), times.ravel())
        return drawn.reshape(times.shape)


def draw(n_samples: Sequence[int], n_seeds: int = 1, n_draws: int = N_DRAWS) -> Draws:
    """Draw samples within each task and seeds, with replacement; the same draws on every call.

    Args:
        n_samples: the number of samples of each task.
        n_seeds: the number of seeds.
        n_draws: how many draws.
    """
    generator = np.random.default_rng(0)
    counts = [generator.multinomial(n, [1 / n] * n, n_draws) / n for n in n_samples]
    seeds = generator.multinomial(n_seeds, [1 / n_seeds] * n_seeds, n_draws) / n_seeds
    return Draws(tuple(counts), seeds)


def interval(value: float, drawn: Vector) -> Interval:
    """A value with the interval of its draws; draws that are NaN are left out."""
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def mean_accuracy(table: Table) -> float:
    """The mean over tasks and seeds of the accuracies, 0..1."""
    return float(np.mean([[np.mean(task) for task in tasks] for tasks in table]))


def drawn_accuracy(table: Table, draws: Draws) -> Vector:
    """The mean accuracy in every draw, float64 (draws,)."""
    by_seed = [
        np.mean([counts @ np.asarray(task) for counts, task in zip(draws.counts, tasks, strict=True)], axis=0)
        for tasks in table
    ]
    found: Vector = (np.stack(by_seed, axis=1) * draws.seeds).sum(1)
    return found


def gap_closed(model: Table, base: Table, individual: Table, draws: Draws) -> Interval:
    """The share of the gap between the base and the tasks' own models that a model closes.

    (model - base) / (individual - base), of means over tasks and seeds: 0 is as good as the base, 1 as good as each
    task's own model on its task. It may be below 0 or above 1.
    """
    low, high = mean_accuracy(base), mean_accuracy(individual)
    return interval((mean_accuracy(model) - low) / (high - low), drawn_gap(model, base, individual, draws))


def drawn_gap(model: Table, base: Table, individual: Table, draws: Draws) -> Vector:
    """The share in every draw, float64 (draws,)."""
    low, high = drawn_accuracy(base, draws), drawn_accuracy(individual, draws)
    # A draw in which the gap vanishes has no share.
    gap = np.where(high == low, np.nan, high - low)
    found: Vector = (drawn_accuracy(model, draws) - low) / gap
    return found


def accuracy_interval(correct: Correct) -> Interval:
    """The mean accuracy over the tasks, 0..1, with its interval."""
    table = _one_seed(correct)
    return interval(mean_accuracy(table), drawn_accuracy(table, draws_of(correct)))


def accuracy_difference(correct: Correct, other: Correct) -> Interval:
    """How much higher the mean accuracy over the tasks is than another model's, with its paired interval, -1..1.

    Args:
        correct, other: of the same tasks and samples.
    """
    tables, draws = [_one_seed(one) for one in (correct, other)], draws_of(correct)
    first, second = (drawn_accuracy(table, draws) for table in tables)
    return interval(mean_accuracy(tables[0]) - mean_accuracy(tables[1]), first - second)


def closed_gap(correct: Correct, base: Correct, individual: Correct) -> Interval | None:
    """The share of the gap that a model closes, see `gap_closed`.

    Args:
        correct, base, individual: of the same tasks and samples.

    Returns:
        The share with its interval; None where the gap itself is not clearly above 0, so that dividing by it says
        nothing.
    """
    low, high, draws = _one_seed(base), _one_seed(individual), draws_of(correct)
    if not np.quantile(drawn_accuracy(high, draws) - drawn_accuracy(low, draws), (1 - LEVEL) / 2) > 0:
        return None
    return gap_closed(_one_seed(correct), low, high, draws)


def draws_of(correct: Mapping[str, Sequence[object]]) -> Draws:
    """The draws for these tasks' samples."""
    return draw([len(answers) for answers in correct.values()])


def _one_seed(correct: Correct) -> Table:
    return [[np.asarray(answers, np.bool_) for answers in correct.values()]]
