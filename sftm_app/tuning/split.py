"""Split labelled samples into a part to choose on and a part to report on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import Samples, TextSamples

SEED = 0


def split_positions(classes: list[Hashable], seed: int = SEED) -> tuple[list[int], list[int]]:
    """Deal samples into two parts like cards: in random order, class by class, one to the left and one to the right.

    So both parts have the same number of samples of each class, and of all samples, to within one.

    Args:
        classes: the class of each sample.
        seed: of the random order.

    Returns:
        Positions of the two parts, ascending, without a common one.
    """
    shuffled = np.random.default_rng(seed).permutation(len(classes)).tolist()
    first: dict[Hashable, int] = {}
    for position, one in enumerate(classes):
        first.setdefault(one, position)
    dealt = sorted(shuffled, key=lambda position: first[classes[position]])  # stable: random within a class
    return sorted(dealt[::2]), sorted(dealt[1::2])


def split_samples(
    samples: Mapping[str, Samples], limit: int | None = None, seed: int = SEED
) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """The validation and test parts of every task's samples, stratified by class.

    Args:
        samples: by task.
        limit: how many samples of a task each part holds at most, evenly over the classes.
        seed: of the split.

    Raises:
        SampleError: a task has a single sample.
    """
    validation, test = {}, {}
    for task, one in samples.items():
        if len(one) < 2:
            raise SampleError(
                f"{task}: has {len(one)} labelled samples. A search needs some to choose on and others to test."
            )
        left, right = split_positions(classes_of(one), seed)
        validation[task], test[task] = one.take(left), one.take(right)
        if limit is not None:
            validation[task], test[task] = validation[task].subset(limit), test[task].subset(limit)
    return validation, test


def classes_of(samples: Samples) -> list[Hashable]:
    """The class of each sample: its label, or the answer that is expected."""
    return list(samples.targets) if isinstance(samples, TextSamples) else samples.labels.tolist()
