"""Several models measured one after the other: the same accuracies as one by one, failures apart, rows kept."""

from __future__ import annotations

import gc
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from pools import SESSION, inputs_of, pool_of
from test_candidates import ready_models as ready_models

from sftm_app.errors import SampleError
from sftm_app.evaluation import measuring
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, method_candidate
from sftm_app.evaluation.comparison import Comparison, compare
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.measuring import Benchmark, answers_of, measure
from sftm_app.evaluation.samples import ImageSamples, TextSamples, targets_of

N = 70  # more than one step
SFTM, AVERAGE = method_candidate("sftm", {"scaling": 0.5}), method_candidate("average")


@pytest.fixture(scope="module")
def benchmark(ready_models: Path) -> Benchmark:
    random = np.random.default_rng(1)
    samples = {
        task: ImageSamples(random.integers(0, 256, (N, 8, 8)).astype(np.uint8), random.integers(0, 3, N))
        for task in ("a", "b", "c")
    }
    found = inputs_of(ready_models / "base", [ready_models / task for task in samples])
    return Benchmark(found, samples, SESSION)


def empty(benchmark: Benchmark) -> Comparison:
    return Comparison({task: len(samples) for task, samples in benchmark.samples.items()})


def test_rows_are_what_each_model_scores_by_itself(benchmark: Benchmark, ready_models: Path) -> None:
    steps = list(compare(benchmark, empty(benchmark).with_candidates([SFTM, AVERAGE])))
    last, pool = steps[-1], pool_of(ready_models)
    assert [row.candidate for row in last.rows] == [BASE, INDIVIDUAL, SFTM, AVERAGE]
    for row in last.rows:
        wanted = {task: accuracy(pool.model(row.candidate, task), one) for task, one in benchmark.samples.items()}
        assert {task: fmean(given) for task, given in row.measurement.correct.items()} == pytest.approx(wanted)
        assert row.state == "done" and row.accuracy is not None
        assert row.accuracy.value == pytest.approx(fmean(wanted.values()))
        assert (row.measurement.seconds > 0) == row.is_merge
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert last.remaining_s == 0.0 and all((step.remaining_s or 0.0) >= 0.0 for step in steps)
    assert next(step.active.candidate for step in steps if step.active) == BASE


def test_a_method_that_cannot_merge_fails_alone_and_says_why(benchmark: Benchmark) -> None:
    last = list(compare(benchmark, empty(benchmark).with_candidates([method_candidate("slerp"), AVERAGE])))[-1]
    states = {row.candidate.kind: row.state for row in last.rows}
    assert states == {"base": "done", "individual": "done", "slerp": "failed", "average": "done"}
    assert "2 tasks" in next(row.problem for row in last.rows if row.state == "failed")


def test_what_was_measured_is_kept_and_what_failed_is_tried_again(benchmark: Benchmark) -> None:
    first = list(compare(benchmark, empty(benchmark).with_candidates([method_candidate("slerp"), AVERAGE])))[-1]
    again = first.with_candidates([SFTM, AVERAGE])
    assert [(row.candidate, row.state) for row in again.rows] == [
        (BASE, "done"),
        (INDIVIDUAL, "done"),
        (AVERAGE, "done"),
        (SFTM, "waiting"),
    ]
    last = list(compare(benchmark, again))[-1]
    assert last.rows[:3] == first.finished[:2] + tuple(row for row in first.rows if row.candidate == AVERAGE)
    assert last.rows[3].state == "done"
    slerp = first.with_candidates([method_candidate("slerp")])
    assert [row.state for row in slerp.rows if row.candidate.kind == "slerp"] == ["waiting"]


def test_no_merge_is_held_once_the_next_one_begins(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    run = measuring.run

    def counted(*arguments: object) -> object:
        gc.collect()
        held.append(sum(isinstance(one, measuring.EvaluationModel) for one in gc.get_objects()))
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "run", counted)
    before = sum(isinstance(one, measuring.EvaluationModel) for one in gc.get_objects())
    list(compare(benchmark, empty(benchmark).with_candidates([SFTM, AVERAGE])))
    assert len(held) == 2 and max(held) <= before


def test_measuring_goes_tensor_by_tensor_and_step_by_step(benchmark: Benchmark) -> None:
    plan = benchmark.plan(AVERAGE)
    assert plan is not None
    steps = list(measure(benchmark, AVERAGE, plan))
    merging = [step for step in steps if not step.n_answers]
    assert len(merging) == len(plan.entries)
    assert [step.merged for step in merging] == pytest.approx([(k + 1) / len(merging) for k in range(len(merging))])
    assert [step.n_answers for step in steps[len(merging) :]] == [64, 70, 134, 140, 204, 210]


class Picky:
    """A model that reads short texts only, and answers them with their first word."""

    def answer(self, samples: TextSamples) -> list[Answer]:
        if any(len(text) > 9 for text in samples.inputs):
            raise SampleError("The text is too long.")
        words = [text.split()[0] for text in samples.inputs]
        pairs = zip(words, samples.targets, strict=True)
        return [Answer(word, ("a", "b"), (0.5, 0.5), target, word == target) for word, target in pairs]


def test_a_sample_that_cannot_be_read_counts_as_wrong_and_says_why() -> None:
    texts = TextSamples(("a x", "a text that is too long", "b y"), ("a", "a", "a"))
    given = answers_of(Picky(), texts)  # type: ignore[arg-type]
    assert [one.correct for one in given] == [True, False, False]
    assert given[1].text == "(no answer: The text is too long.)" and given[1].target == "a"
    sheet = AnswerSheet().followed_by(given)
    assert sheet.chosen and sheet.wrong == (1, 2)
    with pytest.raises(SampleError, match="too long"):
        answers_of(Picky(), texts.take([1]))  # type: ignore[arg-type]


def test_targets_are_texts_whatever_the_samples() -> None:
    images = ImageSamples(np.zeros((3, 2, 2), np.uint8), np.array([1, 0, -1]))
    assert targets_of(images) == ("1", "0", None)
    assert targets_of(ImageSamples(images.images, images.labels, ("x", "y"))) == ("y", "x", None)
    assert targets_of(TextSamples(("t",), ("u",))) == ("u",)
