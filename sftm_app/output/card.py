"""The model card (README.md) of a merged model, with the metadata that the hub reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from sftm_app.output.report import Report
from sftm_app.planning.plan import Plan
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name


def model_card(plan: Plan, report: Report) -> str:
    """Markdown with YAML front matter: base model, relation, tags; then what was merged and how to load it."""
    sources = plan.preflight.checkpoints
    adapter = plan.recipe.output.kind == "adapter"
    library = {} if plan.preflight.base.bare else {"library_name": "transformers"}
    front = {
        # The hub knows models by name alone; the commit stands in the table.
        "base_model": base_name(plan) if adapter else [public_name(source).partition("@")[0] for source in sources],
        "base_model_relation": "adapter" if adapter else "merge",
        **({"library_name": "peft"} if adapter else library),
        "tags": ["merge", "sftm-studio", plan.method.name],
    }
    params = ", ".join(f"{key} {_shown(value)}" for key, value in dataclasses.asdict(plan.recipe.params).items())
    heads = any(match.heads for match in plan.preflight.matches)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {public_name(plan.preflight.base)} with {len(plan.preflight.tasks)} tasks, merged by {plan.method.title}",
        "",
        f"{len(plan.preflight.tasks)} fine-tuned checkpoints were merged into `{public_name(plan.preflight.base)}` "
        f"with **{plan.method.title}**{f' ({params})' if params else ''} by SFTM Studio {report.version}.",
        "",
        "| task | checkpoint | weight |" + (" readout error | mapping error |" if report.readout_errors else ""),
        "|---|---|---|" + ("---|---|" if report.readout_errors else ""),
        *(_row(task.name, task.checkpoint, task.weight, report) for task in plan.preflight.tasks),
        "",
        f"Reference: {plan.method.reference}.",
        "`sftm_recipe.yaml` repeats the merge, `sftm_report.json` says what was done to every tensor.",
        *(["", *_adapter_lines(plan)] if adapter else []),
        *(["", *_head_lines(plan)] if heads else []),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, checkpoint: Checkpoint, weight: float, report: Report) -> str:
    row = f"| {name} | {public_name(checkpoint)} | {weight:g} |"
    if report.readout_errors:
        row += f" {report.readout_errors[name]:.3g} | {report.mapping_errors[name]:.3g} |"
    return row


def _adapter_lines(plan: Plan) -> list[str]:
    base = plan.preflight.base
    model = "AutoModel" if base.bare or base.architecture == "unknown" else base.architecture
    return [
        "This is one LoRA adapter. To use it:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {model}",
        "",
        f'model = PeftModel.from_pretrained({model}.from_pretrained("{base_name(plan)}"), ".")',
        "```",
    ]


def _head_lines(plan: Plan) -> list[str]:
    tasks = zip(plan.preflight.tasks, plan.preflight.matches, strict=True)
    task, _ = next(pair for pair in tasks if pair[1].heads)
    if plan.preflight.base.bare or not task.checkpoint.config:
        return [f"Each task keeps its own head, as tensors in `heads/{task.name}.safetensors` and its like."]
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


def base_name(plan: Plan) -> str:
    """The base's public name without a commit; where it has none, what all adapters among the tasks call it."""
    base = plan.preflight.base
    ours = public_name(base)
    named = {task.checkpoint.adapter.base_name for task in plan.preflight.tasks if task.checkpoint.adapter}
    theirs = named.pop() if len(named) == 1 else ""
    return theirs if ours == base.path.name and theirs and not Path(theirs).is_absolute() else ours.partition("@")[0]


def public_name(checkpoint: Checkpoint) -> str:
    """The hub's name and commit of a fetched checkpoint, else the name that a config remembers, else the folder's name:
    a card is published, so no path of this machine."""
    fetched = hub_name(checkpoint.path)
    if fetched:
        return fetched
    named = checkpoint.config.get("_name_or_path")
    return named if isinstance(named, str) and named and not Path(named).is_absolute() else checkpoint.path.name


def _shown(value: Any) -> str:
    return "full" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
