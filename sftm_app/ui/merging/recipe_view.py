"""The recipe that the controls of the Merge tab describe, its plan, and a recipe that is brought along."""

from __future__ import annotations

import base64
import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftm_app.errors import RecipeError
from sftm_app.output.adapter.extraction import rank_costs
from sftm_app.planning.budget import is_over_budget
from sftm_app.planning.cost import estimate
from sftm_app.planning.planner import plan_for
from sftm_app.planning.recipe import Recipe, load_recipe, make_recipe, recipe_to_yaml
from sftm_app.ui.loading import load_checked
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Safe, chip, chips, code, heading, hint, join, notice, stack, table
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_bytes, format_duration

ANY_MEMORY = "any"


def read_recipe(
    ws: Workspace,
    weights: Any,
    device: str,
    memory: str,
    split_fused: bool,
    output: dict[str, Any],
    method: tuple[str, dict[str, Any]],
) -> Recipe:
    """The recipe that the controls describe.

    Raises
        RecipeError: a control holds something that is not understood.
    """
    rows = weights or []
    if len(rows) != len(ws.tasks):
        rows = [[task.name, task.weight] for task in ws.tasks]
    tasks = []
    for task, row in zip(ws.tasks, rows, strict=True):
        try:
            weight = float(row[1])
        except (TypeError, ValueError, IndexError):
            raise RecipeError(f"{task.name}: the weight {row[1:2]} is not a number. Enter one above 0.") from None
        tasks.append({"path": task.path, "name": task.name, "weight": weight})
    limit = None if memory.strip().lower() in ("", ANY_MEMORY) else memory.strip()
    return make_recipe(ws.base, tasks, method[0], method[1], output, device, dict(ws.roles), split_fused, limit)


def recipe_views(recipe: Recipe) -> tuple[str, Safe, Safe]:
    """The recipe as YAML, the same as a command line, and a link that downloads it without a file on the server."""
    text = recipe_to_yaml(recipe)
    command = shlex.join([sys.executable, "-m", "sftm_app", "merge", "recipe.yaml", "--output", "merged"])
    content = base64.b64encode(text.encode()).decode()
    link = f'<a class="sf-button" download="recipe.yaml" href="data:text/yaml;base64,{content}">Download the recipe</a>'
    return text, hint(join(["The same from a terminal: ", code(command)])), Safe(link)


def plan_view(studio: Studio, ws: Workspace, recipe: Recipe) -> tuple[Safe, bool]:
    """What would happen to which tensors, what it needs, and whether it can be started.

    Raises
        SFTMError: there is no plan for these settings.
    """
    plan = plan_for(recipe, studio.preflight(ws).require())
    cost = estimate(plan)
    counts = Counter((entry.rule, entry.role.value) for entry in plan.entries)
    words = {"superpose": "superposed", "sum": "summed", "average": "averaged", "copy": "copied from the base"}
    rows = [(role, words[rule], count) for (rule, role), count in counts.items()]
    heads = sum(len(match.heads) for match in plan.preflight.matches)
    if heads:
        rows.append(("task heads", "kept apart, one file per task", heads))
    needs = chips(
        [
            chip(f"takes {format_duration(cost.seconds)}", title="estimated by samples on this machine"),
            chip(f"writes {'at most ' if recipe.output.kind == 'adapter' else ''}{format_bytes(plan.output_bytes)}"),
            chip(
                f"needs about {format_bytes(cost.peak_bytes)}",
                title="of memory, at the worst moment, besides Python and torch",
            ),
            chip(f"on {plan.device}"),
        ]
    )
    details = table(
        ["tensor", "rule", "why"], [(code(entry.name), words[entry.rule], entry.why) for entry in plan.entries]
    )
    costliest = table(
        ["tensor", "takes", "memory", "reads", "writes"],
        [
            (
                code(each.name),
                f"{each.seconds:.1f} s" if each.seconds >= 0.05 else "under 0.1 s",
                *map(format_bytes, (each.memory_bytes, each.read_bytes, each.written_bytes)),
            )
            for each in cost.costliest()
        ],
        numeric=[1, 2, 3, 4],
    )
    over = is_over_budget(plan)
    budget = hint(cost.budget) if cost.budget else ""
    if over:
        budget = notice("warning", "This merge cannot start", cost.budget)
    title = heading("Plan", f"{len(plan.entries)} tensors, {len(plan.preflight.tasks)} tasks, {plan.method.title}")
    more = [
        Safe(f'<details class="sf-details"><summary>{summary}</summary>{inside}</details>')
        for summary, inside in (("What takes longest", costliest), ("Every tensor, and why", details))
    ]
    rules = table(["parameters", "are", "tensors"], rows, numeric=[2])
    return stack(title, rules, needs, budget, *more), not over


def rank_costs_html(studio: Studio, ws: Workspace, recipe: Recipe) -> Safe:
    """What an adapter of each rank would keep of this merge, and its size. Computes every layer."""
    # All of the change: the bounds that are set are what the person is about to choose.
    output = replace(recipe.output, kind="adapter", rank=None, energy=1.0)
    costs = rank_costs(plan_for(replace(recipe, output=output), studio.preflight(ws).require()))
    rows = [
        (
            cost.rank,
            f"{cost.energy:.1%}",
            f"{cost.worst_energy:.1%}",
            code(cost.worst_layer) if cost.worst_energy < 0.9995 else "",
            format_bytes(cost.n_bytes),
        )
        for cost in costs
    ]
    left = 1 - costs[0].carried
    caption = f"{left:.1%} of the whole change is outside the layers that an adapter carries." if left > 5e-4 else ""
    return table(["rank", "keeps", "worst layer keeps", "worst layer", "size"], rows, [0, 1, 2, 4], caption)


def workspace_of(studio: Studio, path: Path) -> tuple[Workspace, Recipe]:
    """The workspace of an uploaded recipe, and the recipe; relative paths in it start at the models folder.

    Raises
        RecipeError: it is no recipe.
        InputError: a path is not allowed, or base and tasks do not fit.
    """
    try:
        recipe = load_recipe(path, studio.settings.models_dir)
    except RecipeError as error:
        # The person knows the file by its name, not by where the upload was put.
        raise RecipeError(str(error).replace(str(path), path.name)) from None
    tasks = tuple(replace(task, path=str(allowed(studio.settings, task.path))) for task in recipe.tasks)
    made = Workspace(str(allowed(studio.settings, recipe.base)), tasks, roles=recipe.roles)
    return load_checked(studio, made), recipe
