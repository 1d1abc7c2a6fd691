"""The demo packs as benches: their models and held-out samples lie in `assets/demo`, and nothing is trained.

A quarter of each task's held-out samples, evenly over the classes, is the validation part; the rest is the test part.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.real.bench import TEST, VALIDATION, Bench
from sftm_app.evaluation.accuracy import correct_answers
from sftm_app.evaluation.families import family_of
from sftm_app.evaluation.family import EvaluationModel, ModelParts
from sftm_app.evaluation.packs import PACK_NAME, load_samples, open_pack
from sftm_app.evaluation.samples import Samples, TextSamples
from sftm_app.evaluation.text_files import load_texts
from sftm_app.resources import asset_path
from sftm_app.weights.json_files import read_json


def part_of(samples: Samples, part: str) -> Samples:
    """The validation part or the test part of a task's held-out samples.

    Raises:
        ValueError: there is no such part.
    """
    if part not in (TEST, VALIDATION):
        raise ValueError(f"The demos have the parts {TEST} and {VALIDATION}; {part!r} was asked for.")
    chosen = samples.spread(len(samples) // 4)
    if part == TEST:
        chosen = sorted(set(range(len(samples))) - set(chosen))
    return samples.take(chosen)


def build(parts: ModelParts) -> EvaluationModel:
    """The model as the Evaluate tab has it."""
    return family_of(parts.class_name, parts.config).build(parts)


def make_bench(cache: Path, seed: int = 0, *, name: str) -> Bench:
    """A demo pack.

    Args:
        cache: the folder for what is measured.
        seed: 0; a demo has one set of fine-tunes.
        name: the pack's name.

    Raises:
        ValueError: another seed than 0.
    """
    if seed != 0:
        raise ValueError(f"The demo {name} has one seed, 0; {seed} was asked for.")
    folder = asset_path("demo", name)
    pack = open_pack(folder)
    samples = {task.name: load_samples(task) for task in pack.tasks}
    unseen = {entry["name"]: folder / entry["samples"] for entry in read_json(folder / PACK_NAME).get("unseen", [])}

    def correct(model: EvaluationModel, task: str, part: str) -> tuple[bool, ...]:
        return correct_answers(model, load_texts(unseen[part]) if part in unseen else part_of(samples[task], part))

    def inputs(task: str) -> Samples:
        one = part_of(samples[task], VALIDATION)
        if isinstance(one, TextSamples):
            return replace(one, targets=(None,) * len(one))
        return replace(one, labels=np.full(len(one), -1, np.int64))

    return Bench(
        f"{name}-{seed}",
        pack.base,
        {task.name: task.path for task in pack.tasks},
        cache / "demos" / name / "results" / f"seed{seed}",
        correct,
        inputs,
        # The models that write have no head, so any task's model can read a set that none was tuned for.
        unseen=dict.fromkeys(unseen, pack.tasks[0].name),
        build=build,
    )


make_glyphs = partial(make_bench, name="glyphs")
make_wordplay = partial(make_bench, name="wordplay")
make_glosses = partial(make_bench, name="glosses")
