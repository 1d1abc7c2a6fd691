"""The model card (README.md) of a merged model, with the metadata that the hub reads."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import yaml

from sftm_app.methods.params import values_to_name
from sftm_app.output.report import Report
from sftm_app.planning.plan import Plan
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name


def model_card(plan: Plan, report: Report) -> str:
    """The card as Markdown with YAML front matter: what was merged, what it keeps of each task, how to load it."""
    base, tasks, method = public_name(plan.preflight.base), plan.preflight.tasks, plan.method
    params = ", ".join(f"{key} {_in_words(value)}" for key, value in values_to_name(plan.recipe.params).items())
    many = "s" if len(tasks) > 1 else ""
    has_heads = any(match.heads for match in plan.preflight.matches)
    lines = [
        "---",
        yaml.safe_dump(_front_matter(plan), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {base} with {len(tasks)} task{many}, merged by {method.title}",
        "",
        f"SFTM Studio {report.version} merged {len(tasks)} fine-tuned checkpoint{many} into `{base}` "
        f"with **{method.title}**{f' ({params})' if params else ''}.",
        "",
        *_task_table(plan, report),
        "",
        "What became of every tensor of every task:",
        "",
        # Names of tensors and tokens come from files: they are text here, never markup.
        *(f"* {html.escape(line, quote=False)}" for line in report.account),
        "",
        f"Reference: {method.reference}.",
        "`sftm_recipe.yaml` repeats the merge. `sftm_report.json` lists what was done to every tensor.",
        *(["", *_how_to_load_adapter(plan)] if plan.writes_adapter else []),
        *(["", *_how_to_load_head(plan)] if has_heads else []),
        "",
    ]
    return "\n".join(lines)


def base_name(plan: Plan) -> str:
    """The base's public name without a commit; where it has none, the name that all adapters among the tasks use."""
    base = plan.preflight.base
    ours = public_name(base)
    names = {task.checkpoint.adapter.base_name for task in plan.preflight.tasks if task.checkpoint.adapter}
    theirs = names.pop() if len(names) == 1 else ""
    return theirs if ours == base.path.name and theirs and not Path(theirs).is_absolute() else ours.partition("@")[0]


def public_name(checkpoint: Checkpoint) -> str:
    """What a checkpoint is called in a published card, which must not show a path of this machine.

    Returns:
        "org/name@commit" for a checkpoint from the hub, otherwise the name in its config, otherwise its folder's name.
    """
    fetched = hub_name(checkpoint.path)
    if fetched:
        return fetched
    name = checkpoint.config.get("_name_or_path")
    return name if isinstance(name, str) and name and not Path(name).is_absolute() else checkpoint.path.name


def _front_matter(plan: Plan) -> dict[str, Any]:
    # The hub knows models by their names alone; the table has the commits.
    sources = [public_name(checkpoint).partition("@")[0] for checkpoint in plan.preflight.checkpoints]
    library = "peft" if plan.writes_adapter else None if plan.preflight.architecture.guessed else "transformers"
    return {
        "base_model": base_name(plan) if plan.writes_adapter else sources,
        "base_model_relation": "adapter" if plan.writes_adapter else "merge",
        **({"library_name": library} if library else {}),
        "tags": ["merge", "sftm-studio", plan.method.name],
    }


def _task_table(plan: Plan, report: Report) -> list[str]:
    """The tasks with their weights, and with their errors if the merge measured them."""
    readout = report.readout_errors
    columns = ["task", "checkpoint", "weight", *(["readout error"] if readout else [])]
    rows = [columns, ["---"] * len(columns)]
    for task in plan.preflight.tasks:
        error = [f"{readout[task.name]:.3g}"] if readout else []
        rows.append([task.name, public_name(task.checkpoint), f"{task.weight:g}", *error])
    table = [f"| {' | '.join(row)} |" for row in rows]
    table[1] = table[1].replace(" ", "")
    meaning = (
        "The readout error is a median over the layers: 0 keeps every gain of a task's features, 1 is as far off as "
        "the base itself. It does not say how accurate the merge is: measure that on samples."
    )
    return [*table, "", meaning] if readout else table


def _how_to_load_adapter(plan: Plan) -> list[str]:
    base, known = plan.preflight.base, not plan.preflight.architecture.guessed
    model = base.architecture if known and base.architecture != "unknown" else "AutoModel"
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


def _how_to_load_head(plan: Plan) -> list[str]:
    tasks = zip(plan.preflight.tasks, plan.preflight.matches, strict=True)
    task = next(task for task, match in tasks if match.heads)
    model = task.checkpoint.architecture
    if plan.preflight.architecture.guessed or not task.checkpoint.config:
        return [f"Each task keeps its own head, as tensors in a file such as `heads/{task.name}.safetensors`."]
    return [
        "Each task keeps its own head. To use one:",
        "",
        "```python",
        f"from transformers import AutoConfig, {model}",
        "from safetensors.torch import load_file",
        "",
        f'config = AutoConfig.from_pretrained("heads/{task.name}.json")',
        f'model = {model}.from_pretrained(".", config=config)  # warns that the head is new',
        f'model.load_state_dict(load_file("heads/{task.name}.safetensors"), strict=False)',
        "```",
    ]


def _in_words(value: Any) -> str:
    return "full" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
