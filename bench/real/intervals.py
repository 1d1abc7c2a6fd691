"""The share of the gap that a merge closes, with bootstrap intervals over samples and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_DRAWS = 2000
LEVEL = 0.95

# Per seed and task, one truth value per sample. A task's samples are the same for every seed.
Table = Sequence[Sequence[NDArray[np.bool_]]]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval: 95 % of the draws lie between `low` and `high`."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class Draws:
    """Bootstrap draws, the same for every model, so that differences are paired.

    Attributes:
        counts: per task, how often each draw takes each sample, float64 (draws, samples).
        seeds: how often each draw takes each seed, float64 (draws, seeds), rows sum to 1.
    """

    counts: tuple[NDArray[np.float64], ...]
    seeds: NDArray[np.float64]


def draw(n_samples: Sequence[int], n_seeds: int, n_draws: int = N_DRAWS) -> Draws:
    """Draw samples within each task and seeds, with replacement.

    Args:
        n_samples: the number of samples of each task.
        n_seeds: the number of seeds.
        n_draws: how many draws.
    """
    generator = np.random.default_rng(0)
    counts = [generator.multinomial(n, [1 / n] * n, n_draws) / n for n in n_samples]
    seeds = generator.multinomial(n_seeds, [1 / n_seeds] * n_seeds, n_draws) / n_seeds
    return Draws(tuple(counts), seeds)


def mean_accuracy(table: Table) -> float:
    """The mean over tasks and seeds of the accuracies."""
    return float(np.mean([[task.mean() for task in tasks] for tasks in table]))


def drawn_accuracy(table: Table, draws: Draws) -> Vector:
    """The mean accuracy in every draw, float64 (draws,)."""
    by_seed = [
        np.mean([counts @ task for counts, task in zip(draws.counts, tasks, strict=True)], axis=0) for tasks in table
    ]
    found: Vector = (np.stack(by_seed, axis=1) * draws.seeds).sum(1)
    return found


def gap_closed(model: Table, base: Table, individual: Table, draws: Draws) -> Estimate:
    """The share of the gap from base to individual models that a model closes: of the means over tasks and seeds."""
    low, high = mean_accuracy(base), mean_accuracy(individual)
    return estimate((mean_accuracy(model) - low) / (high - low), drawn_gap(model, base, individual, draws))


def drawn_gap(model: Table, base: Table, individual: Table, draws: Draws) -> Vector:
    """The share in every draw, float64 (draws,)."""
    low, high = drawn_accuracy(base, draws), drawn_accuracy(individual, draws)
    return (drawn_accuracy(model, draws) - low) / (high - low)


def estimate(value: float, drawn: Vector) -> Estimate:
    """A value with the interval of its draws."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, -1..1; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> Vector:
    given = np.asarray(values, dtype=np.float64)
    return np.array([(given < value).sum() + ((given == value).sum() - 1) / 2 for value in given])
