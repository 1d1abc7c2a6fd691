"""What stands beside the merged weights: heads, config, tokenizer, recipe, report, model card."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sftm_app.caching import write_text
from sftm_app.output.card import model_card
from sftm_app.output.report import REPORT_NAME, Report
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import recipe_to_yaml
from sftm_app.weights.copying import copy_file
from sftm_app.weights.file_names import CONFIG_NAME
from sftm_app.weights.partial import sync_folder
from sftm_app.weights.reader import open_reader
from sftm_app.weights.shards import refuse_foreign_link
from sftm_app.weights.writer import write_tensors

HEADS_FOLDER = "heads"
RECIPE_NAME = "sftm_recipe.yaml"
# What `save_pretrained` of tokenizers, processors and generation configs writes; never code.
SIDE_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "vocab-*.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    # What a sentence-transformers model needs behind the transformer: pooling, dense layers, normalisation.
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)


def write_heads(plan: Plan, folder: Path) -> None:
    """Each task's own head with the task's config (its labels), so that the saved model can be tried on it again."""
    for task, match in zip(plan.preflight.tasks, plan.preflight.matches, strict=True):
        if not match.heads:
            continue
        (folder / HEADS_FOLDER).mkdir(exist_ok=True)
        with open_reader(task.checkpoint) as read:
            for name in match.heads:
                if task.checkpoint.tensors[name].is_float:
                    read.finite(name)
            heads = {name: read(name) for name in match.heads}
        write_tensors(folder / HEADS_FOLDER / f"{task.name}.safetensors", heads, {"task": task.name})
        adapter = task.checkpoint.adapter
        named = {"peft_type": "LORA", "task_type": adapter.task_type} if adapter else task.checkpoint.config
        text = json.dumps(named, indent=2, ensure_ascii=False)
        write_text(folder / HEADS_FOLDER / f"{task.name}.json", text, sync=True)
    if (folder / HEADS_FOLDER).is_dir():
        sync_folder(folder / HEADS_FOLDER)


def write_side_files(plan: Plan, folder: Path) -> None:
    """The base's config, with the type that was written, and what its tokenizer and processors need."""
    base = plan.preflight.base
    config = dict(base.config)
    if plan.recipe.output.dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = plan.recipe.output.dtype
    if any(entry.output.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for entry in plan.entries):
        # Only a way of storing: no model computes in it, and transformers refuses to load one that is said to.
        config.pop("torch_dtype", None)
        config["dtype"] = "bfloat16"
    if not base.bare:
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, ensure_ascii=False) + "\n", sync=True)
    if base.path.is_file():
        return  # files beside a single weight file may belong to any of its neighbours
    for pattern in SIDE_FILES:
        for file in sorted(base.path.glob(pattern)):
            target = folder / file.relative_to(base.path)
            refuse_foreign_link(file)
            if file.is_file() and file.suffix != ".py" and not target.exists():
                target.parent.mkdir(exist_ok=True)
                copy_file(file, target)
                sync_folder(target.parent)


def write_documents(plan: Plan, report: Report, folder: Path) -> None:
    """The recipe that repeats the merge, the report of what was done, and the model card."""
    write_text(folder / RECIPE_NAME, recipe_to_yaml(plan.recipe), sync=True)
    write_text(folder / REPORT_NAME, report.to_json(), sync=True)
    write_text(folder / "README.md", model_card(plan, report), sync=True)
