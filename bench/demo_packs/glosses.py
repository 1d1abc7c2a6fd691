"""Train and write the demo pack `glosses`: python -m bench.demo_packs.glosses [--quick] [--cache DIR] [--output DIR]

The base is a small GPT-2 that reads WordNet's definitions and a little of each task. Four LoRA adapters are trained on
it, one per task: what kind of thing a noun's definition describes, what kind of action a verb's definition describes,
which group of animals or plants, and which topic. Each stage is cached under a name made of its settings.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bench.demo_packs.causal import Line, accuracy, fresh, line, lora, train_base, train_tokenizer, tune_adapter
from bench.demo_packs.definitions import TASKS, Gloss, by_task, choices, load_glosses
from bench.demo_packs.stages import digest, stage
from bench.demo_packs.textpack import Figures, command, finish, fresh_folder, task_entry, write_samples
from bench.demo_packs.training import Schedule
from bench.demo_packs.words import WORDNET, fetch_wordnet
from bench.demo_packs.writing import write_json

TITLES = {
    "noun": ("Kinds of things", "What a noun's definition describes: person, animal, artifact and 22 other kinds."),
    "verb": ("Kinds of doing", "What a verb's definition describes: motion, contact, change and 12 other kinds."),
    "living": (
        "Living things",
        "Which living things a definition describes: bird, fish, tree and 15 others.",
    ),
    "topic": ("Topics", "The field a definition belongs to: law, music, chemistry and 13 others."),
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pack's content."""

    n_vocabulary: int = 1500
    n_weak: int = 1000  # glosses per task on which the base sees the task
    share: float = 0.1  # share of the base's training text that shows tasks
    base: Schedule = Schedule(steps=2400, batch=48, lr=2e-3, warmup=100)
    rank: int = 8
    task: Schedule = Schedule(steps=350, batch=32, lr=3e-3, weight_decay=0.0, warmup=20)
    keep: float = 0.5  # weight of keeping the base's answers to the other tasks
    n_samples: int = 300
    seed: int = 0


def make_tokenizer(path: Path, glosses: list[Gloss], settings: Settings) -> PreTrainedTokenizerFast:
    """The tokenizer in folder `path`, trained first on the base's text and the answers if it does not exist."""
    if not path.exists():
        chance = random.Random(settings.seed)
        lines = ["".join(line(gloss, chance)) for gloss in glosses]
        answers = [answer for task in TASKS for answer in choices(glosses, task)]
        train_tokenizer(lines + 3000 * answers, settings.n_vocabulary).save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def train(settings: Settings, words: Any, glosses: list[Gloss], cache: Path) -> tuple[Any, dict[str, PeftModel]]:
    """The base and the adapters, rounded to float16 like the files."""
    parts = (TASKS, len(glosses), settings.n_vocabulary, settings.n_weak, settings.share, settings.base, settings.seed)
    work = cache / f"glosses_{digest((TASKS, len(glosses), settings))}"

    def base_state() -> Any:
        return train_base(words, glosses, settings.n_weak, settings.base, settings.share, settings.seed).state_dict()

    state = stage(cache / f"glosses_base_{digest(parts)}.pt", base_state)
    base = fresh(len(words), 0)
    base.load_state_dict({key: value.half().float() for key, value in state.items()})
    adapters = {}
    for n, task in enumerate(TASKS):
        started = time.perf_counter()

        def adapter_state(task: str = task, n: int = n) -> Any:
            model = tune_adapter(
                base, words, glosses, task, settings.rank, settings.task, settings.keep, settings.seed + 1 + n
            )
            return get_peft_model_state_dict(model)

        tuned = stage(work / f"{task}.pt", adapter_state)
        adapters[task] = get_peft_model(fresh(len(words), 0), lora(settings.rank))
        set_peft_model_state_dict(adapters[task], {key: value.half().float() for key, value in tuned.items()})
        print(f"{task}: {time.perf_counter() - started:.0f} s", flush=True)
    return base, adapters


def write_adapter(folder: Path, model: PeftModel) -> None:
    """Save an adapter with PEFT in float16, without the template of a model card and without paths."""
    model.half().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"base_model_name_or_path": "glosses/base", "target_modules": sorted(content["target_modules"])}
    write_json(path, content)


def measure(pack: Path, held_out: dict[str, list[Line]], answers: dict[str, list[str]]) -> Figures:
    """Accuracy of the base and of every adapter on every set of samples, measured from the files."""
    words = AutoTokenizer.from_pretrained(pack / "base")
    result = {}
    for name in ("base", *TASKS):
        model = AutoModelForCausalLM.from_pretrained(pack / "base", dtype=torch.float32)
        if name != "base":
            model = PeftModel.from_pretrained(model, pack / "tasks" / name)
        result[name] = {key: round(accuracy(model, words, held_out[key], answers[key]), 4) for key in TASKS}
    return result


def make(settings: Settings, cache: Path, output: Path) -> Figures:
    """Run all stages and write the pack. Returns the accuracies measured from its files."""
    glosses, unread = load_glosses(cache, settings.seed)
    words = make_tokenizer(
        cache / f"glosses_tokenizer_{digest((TASKS, len(glosses), settings.n_vocabulary))}", glosses, settings
    )
    count = settings.n_samples
    found = by_task(unread)
    held_out = {task: [(g.ask(task), f" {g.answers[task]}") for g in found[task][:count]] for task in TASKS}
    answers = {task: choices(glosses, task) for task in TASKS}
    base, adapters = train(settings, words, glosses, cache)
    partial = fresh_folder(output)
    base.half().save_pretrained(partial / "base")
    words.save_pretrained(partial / "base")
    for task in TASKS:
        write_adapter(partial / "tasks" / task, adapters[task])
        write_samples(partial / "samples" / f"{task}.json", held_out[task], answers[task])
    figures = measure(partial, held_out, answers)
    content = {
        "name": "glosses",
        "title": "Glosses: what a definition is about",
        "description": "A GPT-2 with a million parameters that read a dictionary's definitions, and four LoRA adapters "
        "on it, each trained to answer one question on a definition.",
        "made_by": "python -m bench.demo_packs.glosses",
        "kind": "text",
        "base": "base",
        "tasks": [task_entry(task, *TITLES[task], count, f"tasks/{task}") for task in TASKS],
        "accuracy": {
            "base": figures["base"],
            "individual": {task: figures[task][task] for task in TASKS},
            "all": figures,
        },
        "licences": [
            {
                "what": "definitions and their categories (weights and samples)",
                "from": f"WordNet 3.0, Debian package {WORDNET} {fetch_wordnet(cache)[1]}",
                "licence": "WordNet 3.0 licence (permissive). Copyright 2006 by Princeton University. "
                "All rights reserved.",
            }
        ],
    }
    finish(partial, output, content)
    return figures


if __name__ == "__main__":
    command("glosses", Settings(), make)
