"""Pick the scaling of a merge without labels: the one at which the merge agrees most with each task's own model.

    divergence(scaling) = mean over tasks t and inputs x of  KL( p_t(. | x) || q_t(. | x; scaling) )

p_t is what the task's own model says, q_t the merge with the head of the task. It is the objective of distillation
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531), with the scaling as the only
parameter. Where a model gives no probabilities because it writes, it is the share of inputs that are answered
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sftm_app.engine.run import run
from sftm_app.errors import InputError, RecipeError, SampleError
from sftm_app.evaluation.candidates import plan_in_memory
from sftm_app.evaluation.family import Answer
from sftm_app.evaluation.labelled import family_at
from sftm_app.evaluation.samples import Samples
from sftm_app.evaluation.shared_models import SharedModels
from sftm_app.evaluation.task_model import individual_parts
from sftm_app.methods import get_method
from sftm_app.methods.params import controls
from sftm_app.planning.device import resolve_device
from sftm_app.preflight.preflight import Preflight
from sftm_app.session import Session

SCALINGS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
# How many inputs of a task are used at most, and how many there should be.
MOST, FEWEST = 64, 16
# A probability of 0 would make one input decide alone.
FLOOR = 1e-6


@dataclass(frozen=True)
class TriedScaling:
    """One scaling. divergence: from the tasks' own models, see the head of this file; 0 is perfect agreement."""

    scaling: float
    divergence: float


def pick(tested: Sequence[TriedScaling]) -> TriedScaling:
    """The scaling with the least divergence, the first of equals."""
    return min(tested, key=lambda one: one.divergence)


def scan_scalings(
    found: Preflight,
    inputs: Mapping[str, Samples],
    session: Session,
    method: str,
    params: Mapping[str, Any] | None = None,
    weights: Sequence[float] | None = None,
    scalings: Sequence[float] = SCALINGS,
    split_fused: bool = False,
) -> Iterator[TriedScaling]:
    """Merge at every scaling, and see how far the merge is from each task's own model.

    Args:
        found: base and tasks.
        inputs: by task; labels are not looked at. The first MOST of each task are used.
        session: its device runs the models.
        method: one with a scaling.
        params: its other parameters; those left out have their defaults.
        weights: one per task; by default those of `found`.
        scalings: those to try.
        split_fused: as in a recipe.

    Yields:
        Each scaling with its divergence.

    Raises:
        RecipeError: the method has no scaling.
        SampleError: there are no inputs, or a task's model cannot be tried.
    """
    if "scaling" not in controls(get_method(method).params):
        raise RecipeError(f"{get_method(method).title} has no scaling to pick. Choose another method.")
    names = [task.name for task in found.tasks]
    unknown = sorted(set(inputs) - set(names))
    if unknown or not inputs:
        raise InputError(f"There is no task {unknown[0]!r}." if unknown else "There are no inputs. Give some per task.")
    used = {task: samples.take(list(range(min(MOST, len(samples))))) for task, samples in inputs.items()}
    device = resolve_device(session.device)
    own = {}
    for task, samples in used.items():
        index = names.index(task)
        # Built and dropped one by one.
        own[task] = family_at(found, index).build(individual_parts(found, index, device)).answer(samples)
    models = SharedModels(found, list(used), device)
    for scaling in scalings:
        plan = plan_in_memory(found, method, {**(params or {}), "scaling": scaling}, session, weights, split_fused)
        models.load((merged.entry.name, merged.tensor) for merged in run(plan, session))
        given = {task: models.model(task).answer(samples) for task, samples in used.items()}
        yield TriedScaling(scaling, divergence(own, given))


def divergence(own: Mapping[str, Sequence[Answer]], given: Mapping[str, Sequence[Answer]]) -> float:
    """The mean over tasks of how far answers are from those of the tasks' own models, see the head of this file.

    Args:
        own, given: by task, answers to the same inputs in the same order.

    Raises:
        SampleError: a task has no answers.
    """
    if not all(own.values()):
        raise SampleError("A task has no inputs. Give some for every task that is named.")
    speaks = all(_has_probabilities(one) for answers in own.values() for one in answers)
    measure = _kl if speaks else _differs
    return fmean(fmean(map(measure, own[task], given[task])) for task in own)


def _has_probabilities(answer: Answer) -> bool:
    return bool(answer.scores) and math.isclose(sum(answer.scores), 1.0, abs_tol=1e-3) and min(answer.scores) >= 0


def _kl(own: Answer, given: Answer) -> float:
    """KL(own || given) in nats."""
    pairs = zip(own.scores, given.scores, strict=True)
    return sum(p * math.log(max(p, FLOOR) / max(q, FLOOR)) for p, q in pairs if p > 0)


def _differs(own: Answer, given: Answer) -> float:
    return float(own.text.strip() != given.text.strip())
