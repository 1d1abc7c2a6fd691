"""The files next to the merged weights: heads, config, tokenizer, recipe, report, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sftm_app.caching import write_text
from sftm_app.output.card import model_card
from sftm_app.output.report import Report
from sftm_app.output.tokenizer_files import TOKENIZER_FILES, complete_tokenizer
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import recipe_to_yaml
from sftm_app.weights.copying import copy_file
from sftm_app.weights.file_names import CONFIG_NAME, REPORT_NAME
from sftm_app.weights.partial import sync_folder
from sftm_app.weights.reader import open_reader
from sftm_app.weights.shards import refuse_foreign_link
from sftm_app.weights.writer import write_tensors

HEADS_FOLDER = "heads"
RECIPE_NAME = "sftm_recipe.yaml"
# What `save_pretrained` of processors and generation configs writes, and modules next to a model; never code.
SIDE_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "processor_config.json",
    # Modules of sentence-transformers after the transformer: pooling, dense layers, normalisation.
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
)


def write_heads(plan: Plan, folder: Path) -> None:
    """Write each task's own head with the task's config, which has its labels.

    Raises:
        NumericalError: a head holds NaN or Inf.
        CheckpointError: a head cannot be read.
    """
    heads = folder / HEADS_FOLDER
    for task, match in zip(plan.preflight.tasks, plan.preflight.matches, strict=True):
        if not match.heads:
            continue
        checkpoint = task.checkpoint
        heads.mkdir(exist_ok=True)
        with open_reader(checkpoint) as read:
            for name in match.heads:
                if checkpoint.tensors[name].is_float:
                    read.finite(name)
            tensors = {name: read(name) for name in match.heads}
        write_tensors(heads / f"{task.name}.safetensors", tensors, {"task": task.name})
        adapter = checkpoint.adapter
        config = {"peft_type": "LORA", "task_type": adapter.task_type} if adapter else checkpoint.config
        write_text(heads / f"{task.name}.json", json.dumps(config, indent=2, ensure_ascii=False), sync=True)
    if heads.is_dir():
        sync_folder(heads)


def write_side_files(plan: Plan, folder: Path) -> None:
    """Write the base's config with the dtype of the output, and copy the files of its processors and of the tokenizer.

    Raises:
        CheckpointError: a file cannot be read, or is a link that leads out of its checkpoint.
    """
    base = plan.preflight.base
    if not base.bare:
        config = json.dumps(_config(plan), indent=2, ensure_ascii=False)
        (folder / base.main).mkdir(exist_ok=True)
        write_text(folder / base.main / CONFIG_NAME, config + "\n", sync=True)
    if base.path.is_file():
        return  # files next to a single weight file may belong to other models
    tokenizers = plan.preflight.tokenizers
    _copy(SIDE_FILES, base.path, folder)
    if base.main:
        _copy(SIDE_FILES, base.folder, folder / base.main)
    source = tokenizers.source or base
    _copy(TOKENIZER_FILES, source.folder, folder / base.main)
    complete_tokenizer(tokenizers, folder / base.main)


def _copy(patterns: Sequence[str], source: Path, folder: Path) -> None:
    """Copy the files of these names from a checkpoint's folder."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            target = folder / file.relative_to(source)
            refuse_foreign_link(file, source)
            if file.is_file() and file.suffix != ".py" and not target.exists():
                target.parent.mkdir(exist_ok=True)
                copy_file(file, target)
                sync_folder(target.parent)


def _config(plan: Plan) -> dict[str, Any]:
    """The base's config with the dtype of the output."""
    config, dtype = dict(plan.preflight.base.config), plan.recipe.output.dtype
    if any(entry.output.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for entry in plan.entries):
        dtype = "bfloat16"  # no model computes in float8, and transformers refuses a config that asks for it
    if not plan.preflight.architecture.guessed:
        config.pop("auto_map", None)  # transformers has the class, and code is not copied
    if dtype:
        config.pop("torch_dtype", None)  # an older name of the same
        config["dtype"] = dtype
    return config


def write_documents(plan: Plan, report: Report, folder: Path) -> None:
    """Write the recipe, the report and the model card."""
    write_text(folder / RECIPE_NAME, recipe_to_yaml(plan.recipe), sync=True)
    write_text(folder / REPORT_NAME, report.to_json(), sync=True)
    write_text(folder / "README.md", model_card(plan, report), sync=True)
