"""The parts of a split: stratified, without a common sample, and the same every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sftm_app.errors import SampleError
from sftm_app.evaluation.samples import ImageSamples, TextSamples
from sftm_app.tuning.split import classes_of, split_positions, split_samples

CLASSES = [0] * 7 + [1] * 4 + [2] * 1 + [0] * 6 + [3] * 3


def test_both_parts_have_as_many_of_each_class() -> None:
    left, right = split_positions(list(CLASSES))
    assert sorted(left + right) == list(range(len(CLASSES))), "each sample is in one part"
    assert abs(len(left) - len(right)) <= 1
    counts = [Counter(CLASSES[position] for position in part) for part in (left, right)]
    assert all(abs(counts[0][one] - counts[1][one]) <= 1 for one in set(CLASSES))
    assert split_positions(list(CLASSES)) == (left, right), "the same every time"
    assert split_positions(list(CLASSES), seed=1) != (left, right)


def test_answers_that_are_all_different_are_halved() -> None:
    left, right = split_positions([f"answer {n}" for n in range(31)])
    assert len(left) == 16 and len(right) == 15 and not set(left) & set(right)


def test_samples_are_split_task_by_task() -> None:
    images = ImageSamples(np.arange(20, dtype=np.uint8)[:, None, None], np.array(CLASSES[:20], np.int64))
    texts = TextSamples(tuple("abcdef"), ("x", "y", "x", "y", "x", "y"))
    validation, test = split_samples({"i": images, "t": texts})
    assert len(classes_of(validation["t"])) == 3 and set(classes_of(validation["t"])) == {"x", "y"}
    seen = [{int(image.max()) for image in part["i"].images} for part in (validation, test)]  # type: ignore[union-attr]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 20
    fewer, rest = split_samples({"i": images}, limit=4)
    assert len(fewer["i"]) == len(rest["i"]) == 4
    assert {int(image.max()) for image in fewer["i"].images} <= seen[0]  # type: ignore[union-attr]


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(SampleError, match="t: has 1 labelled sample"):
        split_samples({"t": TextSamples(("a",), ("x",))})
