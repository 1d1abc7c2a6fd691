"""The model card (README.md) of a merged model, with the metadata that the hub reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from sftm_app.checkpoints.checkpoint import Checkpoint
from sftm_app.merging.plan import Plan
from sftm_app.merging.report import Report


def model_card(plan: Plan, report: Report) -> str:
    """Markdown with YAML front matter: base model, relation, tags; then what was merged and how to load it."""
    sources = [plan.preflight.base, *(task.checkpoint for task in plan.preflight.tasks)]
    front = {
        "base_model": [_public_name(source) for source in sources],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "sftm-studio", plan.method.name],
    }
    params = ", ".join(f"{key} {_shown(value)}" for key, value in dataclasses.asdict(plan.recipe.params).items())
    heads = any(match.heads for match in plan.preflight.matches)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {_public_name(plan.preflight.base)} with {len(plan.preflight.tasks)} tasks, merged by {plan.method.title}",
        "",
        f"{len(plan.preflight.tasks)} fine-tuned checkpoints were merged into `{_public_name(plan.preflight.base)}` "
        f"with **{plan.method.title}**{f' ({params})' if params else ''} by SFTM Studio {report.version}.",
        "",
        "| task | checkpoint | weight |" + (" readout error | mapping error |" if report.readout_errors else ""),
        "|---|---|---|" + ("---|---|" if report.readout_errors else ""),
        *(_row(task.name, task.checkpoint, task.weight, report) for task in plan.preflight.tasks),
        "",
        f"Reference: {plan.method.reference}.",
        "`sftm_recipe.yaml` repeats the merge, `sftm_report.json` says what was done to every tensor.",
        *(["", *_head_lines(plan)] if heads else []),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, checkpoint: Checkpoint, weight: float, report: Report) -> str:
    row = f"| {name} | {_public_name(checkpoint)} | {weight:g} |"
    if report.readout_errors:
        row += f" {report.readout_errors[name]:.3g} | {report.mapping_errors[name]:.3g} |"
    return row


def _head_lines(plan: Plan) -> list[str]:
    tasks = zip(plan.preflight.tasks, plan.preflight.matches, strict=True)
    task, _ = next(pair for pair in tasks if pair[1].heads)
    return [
        "Each task keeps its own head. To use one:",
        "",
        "```python",
        f"from transformers import AutoConfig, {task.checkpoint.architecture}",
        "from safetensors.torch import load_file",
        "",
        f'config = AutoConfig.from_pretrained("heads/{task.name}.json")',
        f'model = {task.checkpoint.architecture}.from_pretrained(".", config=config)  # warns that the head is new',
        f'model.load_state_dict(load_file("heads/{task.name}.safetensors"), strict=False)',
        "```",
    ]


def _public_name(checkpoint: Checkpoint) -> str:
    """The hub name that a config remembers, else the folder's name: a card is published, so no path of this machine."""
    named = checkpoint.config.get("_name_or_path")
    return named if isinstance(named, str) and named and not Path(named).is_absolute() else checkpoint.path.name


def _shown(value: Any) -> str:
    return "full" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
