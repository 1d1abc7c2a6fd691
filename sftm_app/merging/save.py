"""Run a plan into a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from sftm_app.checkpoints.checkpoint import CONFIG_NAME, open_reader
from sftm_app.checkpoints.writer import (
    check_room,
    copy_file,
    list_files,
    output_folder,
    refuse_existing,
    sync_folder,
    weights_writer,
    write_tensors,
    write_text,
)
from sftm_app.errors import OutputError
from sftm_app.merging.card import model_card
from sftm_app.merging.plan import Plan, check_output
from sftm_app.merging.recipe import recipe_to_yaml
from sftm_app.merging.report import REPORT_NAME, Report, TensorRecord, make_report
from sftm_app.merging.run import run

HEADS_FOLDER = "heads"
RECIPE_NAME = "sftm_recipe.yaml"
LAST_STEP = "Writing the report"
# What `save_pretrained` of tokenizers, processors and generation configs writes; never code, never other weights.
SIDE_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.*",
)


@dataclass(frozen=True)
class Progress:
    """After `done` of `total` tensors, the last of which was `name`. `fraction` counts work, not tensors.

    The last one has the name LAST_STEP: every tensor is merged, the files are still to be completed.
    """

    done: int
    total: int
    name: str
    fraction: float
    elapsed_s: float
    remaining_s: float


def save(plan: Plan, output: Path) -> Generator[Progress, None, Report]:
    """Merge into `output`, yielding after each tensor and before the last step, and returning the Report.

    Closing it early leaves nothing behind.

    Raises
        OutputError, ResourceError: see check_output and output_folder; and what run() raises.
    """
    check_output(plan, output)
    started = time.perf_counter()
    total_cost = sum(entry.cost for entry in plan.entries)
    cost = 0.0
    records: list[TensorRecord] = []
    with output_folder(output) as partial:
        _write_heads(plan, partial)
        with weights_writer(partial, [entry.output for entry in plan.entries], plan.max_shard_bytes) as writer:
            for merged in run(plan):
                writer.write(merged.entry.name, merged.tensor)
                records.append(merged.record)
                cost += merged.entry.cost
                elapsed = time.perf_counter() - started
                left = elapsed * (total_cost - cost) / cost
                yield Progress(len(records), len(plan.entries), merged.entry.name, cost / total_cost, elapsed, left)
            # What follows takes seconds for large models: bytes go to the disk, every input is read again for its hash.
            yield Progress(len(records), len(plan.entries), LAST_STEP, 1.0, time.perf_counter() - started, 0.0)
        _write_side_files(plan, partial)
        report = make_report(plan, records, time.perf_counter() - started)
        write_text(partial / RECIPE_NAME, recipe_to_yaml(plan.recipe))
        write_text(partial / REPORT_NAME, report.to_json())
        write_text(partial / "README.md", model_card(plan, report))
    return report


def publish(model: Path, output: Path) -> None:
    """Copy a merged model that was tried to the folder where it is to stay; it appears complete or not at all.

    Raises
        CheckpointError: `model` is not there or cannot be read.
        OutputError, ResourceError: `output` exists, cannot be written, or the disk is too full.
    """
    if model.resolve() in output.resolve().parents:
        raise OutputError(f"{output}: is inside the model that is to be copied there. Choose another output folder.")
    refuse_existing(output)
    files = list_files(model)
    check_room(output, sum(files.values()))
    with output_folder(output) as partial:
        folders = {partial / file.parent for file in files}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            copy_file(model / file, partial / file)
        for folder in folders:
            sync_folder(folder)


def _write_heads(plan: Plan, folder: Path) -> None:
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
        text = json.dumps(task.checkpoint.config, indent=2, ensure_ascii=False)
        write_text(folder / HEADS_FOLDER / f"{task.name}.json", text)
    if (folder / HEADS_FOLDER).is_dir():
        sync_folder(folder / HEADS_FOLDER)


def _write_side_files(plan: Plan, folder: Path) -> None:
    base = plan.preflight.base
    config = dict(base.config)
    if plan.recipe.output.dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = plan.recipe.output.dtype
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for pattern in SIDE_FILES:
        for file in sorted(base.path.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                copy_file(file, folder / file.name)
