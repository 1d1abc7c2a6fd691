"""The parts of a task's samples that a bench measures one by one."""

from __future__ import annotations

from bench.real.bench import TEST, VALIDATION
from bench.real.classifiers import Split, Task
from sftm_app.evaluation.samples import TextSamples

MORE = "more"


def part_of(task: Task, part: str, n_first: int) -> Split:
    """The samples of one part: "validation", the first `n_first` test samples ("test"), or the other ones ("more").

    Raises:
        ValueError: there is no such part.
    """
    parts = {
        TEST: Split(task.test.inputs[:n_first], task.test.labels[:n_first]),
        MORE: Split(task.test.inputs[n_first:], task.test.labels[n_first:]),
        VALIDATION: task.validation,
    }
    if part not in parts:
        raise ValueError(f"{task.name}: has the parts {', '.join(parts)}; {part!r} was asked for.")
    return parts[part]


def unlabelled_texts(task: Task, choices: tuple[str, ...] | None = None) -> TextSamples:
    """The validation texts of a task, without their labels."""
    texts = tuple(task.validation.inputs)
    return TextSamples(texts, (None,) * len(texts), choices)
