"""Measure one model on every task, merging it first if it is no model on disk; hold no other merge in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from sftm_app.engine.run import run
from sftm_app.errors import SampleError
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.answer_store import AnswerStore, samples_digest
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, plan_in_memory, stored_tensors
from sftm_app.evaluation.families import family_of
from sftm_app.evaluation.family import Answer, EvaluationModel
from sftm_app.evaluation.intervals import Correct
from sftm_app.evaluation.model_keys import model_key
from sftm_app.evaluation.samples import Samples, targets_of
from sftm_app.evaluation.task_model import individual_parts, merged_parts, model_spec
from sftm_app.evaluation.task_tensors import read_all
from sftm_app.evaluation.tokens import batches
from sftm_app.planning.device import resolve_device
from sftm_app.planning.plan import Plan
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session

# How many samples are answered between two steps. Models that write take long for each. Both are multiples of the
# families' batches, so that the batches, and so the answers, are those of an answer to all samples at once.
SAMPLES_PER_STEP, TEXTS_WRITTEN_PER_STEP = 64, 16


@dataclass(frozen=True)
class Measurement:
    """One model, as far as it is measured.

    Attributes:
        candidate: the model.
        sheets: by task, its answers; shorter than the samples while it is measured.
        merged: the share of its tensors that are merged, 0..1; 1 for models that are not merged.
        seconds: that merging took, so far.
        n_known: how many answers were known before.
    """

    candidate: Candidate
    sheets: Mapping[str, AnswerSheet]
    merged: float = 0.0
    seconds: float = 0.0
    n_known: int = 0

    @property
    def correct(self) -> Correct:
        """By task, whether it answered each sample correctly."""
        return {task: sheet.correct for task, sheet in self.sheets.items()}

    @cached_property
    def n_answers(self) -> int:
        """How many samples were answered, of all tasks together."""
        return sum(map(len, self.sheets.values()))


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What models are measured with.

    Attributes:
        found: the workspace.
        samples: by task, the labelled samples.
        session: its device and caches are used.
        split_fused: how merges are planned, as in a recipe.
        answers: where answers are kept, so that no model is asked the same twice; None to keep none.
    """

    found: Preflight
    samples: Mapping[str, Samples]
    session: Session
    split_fused: bool = False
    answers: AnswerStore | None = None

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """By task, what identifies its samples."""
        return {task: samples_digest(one) for task, one in self.samples.items()}

    def key(self, candidate: Candidate) -> str:
        """What identifies a candidate, its files included."""
        return model_key(self.found, candidate, self.session, self.split_fused)

    def known(self, candidate: Candidate) -> dict[str, AnswerSheet]:
        """The answers of a candidate that are kept, by task."""
        return self.answers.load_all(self.key(candidate), self.digests) if self.answers else {}

    def plan(self, candidate: Candidate) -> Plan | None:
        """The plan of a candidate's merge; None for those that are not merged.

        Raises:
            InputError: the method cannot merge these tasks with these settings.
        """
        if candidate.key in (BASE.key, INDIVIDUAL.key) or candidate.folder is not None:
            return None
        kind, params, weights = candidate.kind, candidate.params, candidate.weights
        return plan_in_memory(self.found, kind, params, self.session, weights, self.split_fused)


def measure(benchmark: Benchmark, candidate: Candidate, plan: Plan | None) -> Iterator[Measurement]:
    """Merge a candidate and measure it on every task that has samples, apart from what is known of it.

    Args:
        benchmark: what it is measured with.
        candidate: the model.
        plan: `benchmark.plan(candidate)`.

    Yields:
        The measurement after each merged tensor and after every few samples; the last one is complete.

    Raises:
        SampleError: a task's model cannot be tried, or the samples do not suit it.
        NumericalError, ResourceError, MethodError: the merge failed.
    """
    known = benchmark.known(candidate)
    sheets = {task: known.get(task, AnswerSheet()) for task in benchmark.samples}
    now = Measurement(candidate, sheets, n_known=sum(map(len, known.values())))
    if len(known) == len(benchmark.samples):
        yield replace(now, merged=1.0)
        return
    started = time.monotonic()
    tensors: Mapping[str, Tensor] | None = None
    if plan is not None:
        tensors = made = {}
        for merged in run(plan, benchmark.session):
            made[merged.entry.name] = merged.tensor
            now = replace(now, merged=len(made) / len(plan.entries), seconds=time.monotonic() - started)
            yield now
    elif candidate.folder is not None:
        tensors = stored_tensors(benchmark.found, candidate.folder, benchmark.session)
    elif candidate.key == BASE.key:
        tensors = read_all(benchmark.found.base)
    now = replace(now, merged=1.0)
    for task in [task for task in benchmark.samples if task not in known]:
        samples = benchmark.samples[task]
        model = _model(benchmark, tensors, candidate, task)
        for positions in batches(range(len(samples)), _step(benchmark, task)):
            sheet = now.sheets[task].followed_by(answers_of(model, samples.take(list(positions))))
            now = replace(now, sheets={**now.sheets, task: sheet})
            yield now
        del model  # before the next one is built
        if benchmark.answers is not None:
            benchmark.answers.save(benchmark.key(candidate), task, benchmark.digests[task], now.sheets[task])


def answers_of(model: EvaluationModel, samples: Samples) -> list[Answer]:
    """One answer to each sample. One that a model cannot read counts as wrong, and its answer says why.

    Raises:
        SampleError: the model can read none of them.
    """
    try:
        return model.answer(samples)
    except SampleError:
        alone = [_answer_alone(model, samples.take([place])) for place in range(len(samples))]
        answered = next((one for one in alone if isinstance(one, Answer)), None)
        if answered is None:
            raise
        # An answer that was chosen has options; what the model could not read must not look as if it wrote freely.
        options = answered.options and ("",)
        targets = targets_of(samples)
        return [
            one if isinstance(one, Answer) else Answer(f"(no answer: {one})", options, (), target, False)
            for one, target in zip(alone, targets, strict=True)
        ]


def _answer_alone(model: EvaluationModel, sample: Samples) -> Answer | SampleError:
    try:
        (given,) = model.answer(sample)
        return given
    except SampleError as error:
        return error


def _model(
    benchmark: Benchmark, tensors: Mapping[str, Tensor] | None, candidate: Candidate, task: str
) -> EvaluationModel:
    """The candidate with the head of a task. tensors: by the base's names; None for the task's own model."""
    found, index, device = benchmark.found, _index(benchmark, task), resolve_device(benchmark.session.device)
    spec = model_spec(found, index)
    family = family_of(spec.class_name, spec.config)
    if tensors is None:
        return family.build(individual_parts(found, index, device))
    return family.build(merged_parts(found, index, tensors, candidate.title, device))


def _step(benchmark: Benchmark, task: str) -> int:
    spec = model_spec(benchmark.found, _index(benchmark, task))
    writes = family_of(spec.class_name, spec.config).writes
    return TEXTS_WRITTEN_PER_STEP if writes else SAMPLES_PER_STEP


def _index(benchmark: Benchmark, task: str) -> int:
    return [one.name for one in benchmark.found.tasks].index(task)
