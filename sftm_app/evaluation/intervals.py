"""How far the mean accuracy over tasks, and the gap that a merge closes, could be off: the bootstrap over samples.

    m* = mean over tasks of the mean of n_t answers drawn with replacement from the n_t answers to task t

The interval holds the middle 95 % of m* (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Every model
answers the same samples, and the same draws are used for all models, so differences and ratios of models that err on
the same samples vary less than each model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 1000
# The middle 95 %.
TAILS = (2.5, 97.5)

# By task: whether a model answered each sample correctly.
Correct = Mapping[str, Sequence[bool]]


@dataclass(frozen=True)
class Interval:
    """A value, and the interval that holds it with a probability of about 95 %."""

    value: float
    low: float
    high: float


def resampled_means(correct: Correct, n_resamples: int = N_RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Mean accuracies over the tasks, each from samples drawn with replacement.

    Args:
        correct: by task, at least one answer each.
        n_resamples: how many means.
        seed: of the draws. Models with the same numbers of samples get the same draws.

    Returns:
        float64 (n_resamples,), 0..1.
    """
    random = np.random.default_rng(seed)
    means = []
    for answers in correct.values():
        n = len(answers)
        drawn = random.integers(n, size=(n_resamples, n))
        means.append(np.asarray(answers, dtype=np.float64)[drawn].mean(axis=1))
    return np.mean(means, axis=0)


def mean_accuracy(correct: Correct) -> float:
    """The mean over the tasks of the share of correct answers, 0..1."""
    return fmean(fmean(answers) for answers in correct.values())


def accuracy_interval(correct: Correct) -> Interval:
    """The mean accuracy over the tasks, 0..1, with its interval."""
    return _interval(mean_accuracy(correct), resampled_means(correct))


def closed_gap(correct: Correct, base: Correct, individual: Correct) -> Interval | None:
    """The share of the gap between the base and the tasks' own models that a model closes.

    (model - base) / (individual - base), of mean accuracies: 0 is as good as the base, 1 as good as each task's own
    model on its task. It may be below 0 or above 1.

    Args:
        correct, base, individual: of the same tasks and samples.

    Returns:
        The share with its interval; None where the gap itself is not clearly above 0, so that dividing by it says
        nothing.
    """
    low, high = resampled_means(base), resampled_means(individual)
    gaps = high - low
    if not np.percentile(gaps, TAILS[0]) > 0:
        return None
    start, end = mean_accuracy(base), mean_accuracy(individual)
    share = (mean_accuracy(correct) - start) / (end - start)
    # A draw in which the gap vanishes is one of fewer than the 2.5 % that the interval leaves out.
    drawn = (resampled_means(correct) - low) / np.where(gaps > 0, gaps, np.nan)
    return _interval(share, drawn)


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(drawn, TAILS)
    return Interval(value, float(low), float(high))
