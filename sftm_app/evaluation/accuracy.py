"""Accuracy of a model on labelled samples."""

from __future__ import annotations

from statistics import fmean

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.samples import Samples


def accuracy(model: EvaluationModel, samples: Samples) -> float:
    """The share of samples that a model answers correctly, 0..1. Raises SampleError as `correct_answers`."""
    return fmean(correct_answers(model, samples))


def correct_answers(model: EvaluationModel, samples: Samples) -> tuple[bool, ...]:
    """Whether a model answers each sample correctly.

    Raises:
        SampleError: there are no samples, or the correct answer to one of them is not known.
    """
    answers = model.answer(samples)
    if not answers or any(answer.correct is None for answer in answers):
        raise SampleError("Accuracy needs samples whose correct answers are all known.")
    return tuple(bool(answer.correct) for answer in answers)
