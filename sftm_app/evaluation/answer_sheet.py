"""What one model answered to the labelled samples of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.errors import SampleError
from sftm_app.evaluation.family import Answer


@dataclass(frozen=True)
class AnswerSheet:
    """Answers in the order of the samples.

    Attributes:
        answers: what the model said.
        targets: the correct answers.
        correct: whether each answer is correct.
        chosen: whether the model chose from options; False if it wrote freely.
    """

    answers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()
    chosen: bool = True

    def __len__(self) -> int:
        return len(self.correct)

    def followed_by(self, given: Sequence[Answer]) -> AnswerSheet:
        """With the answers to the samples that come next.

        Raises:
            SampleError: the correct answer to one of them is not known.
        """
        if any(one.correct is None or one.target is None for one in given):
            raise SampleError("A score needs samples whose correct answers are all known.")
        return AnswerSheet(
            (*self.answers, *(one.text for one in given)),
            (*self.targets, *(str(one.target) for one in given)),
            (*self.correct, *(bool(one.correct) for one in given)),
            self.chosen and all(one.options for one in given),
        )

    @property
    def wrong(self) -> tuple[int, ...]:
        """The positions of the wrong answers."""
        return tuple(place for place, right in enumerate(self.correct) if not right)
