"""The plan of a recipe, the recipe as a file and as a command, and a recipe from a file."""

from __future__ import annotations

import base64
import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from sftm_app.errors import RecipeError
from sftm_app.output.adapter.extraction import rank_costs
from sftm_app.planning.account import accounts
from sftm_app.planning.budget import is_over_budget
from sftm_app.planning.plan import Cost, Plan, PlanEntry
from sftm_app.planning.recipe import Recipe, load_recipe
from sftm_app.ui.loading import load_checked
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Html, chip, chips, code, details, heading, hint, join, notice, stack, table
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_bytes, format_count, format_duration


def command_html() -> Html:
    """The merge as a command line."""
    command = shlex.join([sys.executable, "-m", "sftm_app", "merge", "recipe.yaml", "--output", "merged"])
    return hint(join(["From a terminal: ", code(command)]))


def download_html(text: str) -> Html:
    """A link that downloads the recipe without a file on the server."""
    content = base64.b64encode(text.encode()).decode()
    link = '<a class="sf-button" download="recipe.yaml" href="data:text/yaml;base64,{}">Download the recipe</a>'
    return Html(link).format(content)


def plan_html(plan: Plan) -> Html:
    """What will happen to which tensors, and what it needs."""
    cost = plan.cost
    n_tensors, n_tasks = len(plan.entries), len(plan.preflight.tasks)
    title = heading(
        "Plan", f"{format_count(n_tensors, 'tensor')}, {format_count(n_tasks, 'task')}, {plan.method.title}"
    )
    budget: object = hint(cost.budget) if cost.budget else ""
    if is_over_budget(plan):
        budget = notice("warning", "This merge cannot start", cost.budget)
    every = table(
        ["tensor", "rule", "why"], [(code(entry.name), _rule(plan, entry), entry.why) for entry in plan.entries]
    )
    fates = stack(*(hint(one.sentence()) for one in accounts(plan)))
    # Folded, so that the result of the merge below is in sight.
    folded = details(
        "Details of the plan",
        stack(
            _rules(plan),
            details("What becomes of the tasks' tensors", fates),
            details("What takes longest", _costliest(cost)),
            details("Every tensor, and why", every),
        ),
    )
    return stack(title, _needs(plan), budget, folded)


def _rule(plan: Plan, entry: PlanEntry) -> str:
    words = {"sum": "summed", "average": "averaged", "copy": "copied from the base"}
    return words.get(entry.rule, f"merged by {plan.method.title}")


def _rules(plan: Plan) -> Html:
    counts = Counter((entry.role.value, _rule(plan, entry)) for entry in plan.entries)
    rows = [(role, rule, count) for (role, rule), count in counts.items()]
    heads = sum(len(match.heads) for match in plan.preflight.matches)
    if heads:
        rows.append(("task heads", "not merged; one file per task", heads))
    return table(["parameters", "are", "tensors"], rows, numeric=[2])


def _needs(plan: Plan) -> Html:
    at_most = "at most " if plan.writes_adapter else ""
    memory = "of memory at the peak, not counting Python and torch"
    return chips(
        [
            chip(
                f"takes {format_duration(plan.cost.seconds)}",
                title="estimated for this machine, within a factor of two",
            ),
            chip(f"writes {at_most}{format_bytes(plan.output_bytes)}"),
            chip(f"needs about {format_bytes(plan.cost.peak_bytes)}", title=memory),
            chip(f"on {plan.device}"),
        ]
    )


def _costliest(cost: Cost) -> Html:
    rows = [
        (
            code(one.name),
            f"{one.seconds:.1f} s" if one.seconds >= 0.05 else "under 0.1 s",
            *map(format_bytes, (one.memory_bytes, one.read_bytes, one.written_bytes)),
        )
        for one in cost.costliest()
    ]
    return table(["tensor", "takes", "memory", "reads", "writes"], rows, numeric=[1, 2, 3, 4])


def rank_costs_html(studio: Studio, ws: Workspace, recipe: Recipe) -> Html:
    """How much of this merge an adapter of each rank would keep, and its size. Computes every layer."""
    # All of the energy: the limits that are set are what the person is about to choose.
    output = replace(recipe.output, kind="adapter", rank=None, energy=1.0)
    costs = rank_costs(studio.plan(ws, replace(recipe, output=output, measure="none")), studio.session)
    rows = [
        (
            cost.rank,
            f"{cost.energy:.1%}",
            f"{cost.worst_energy:.1%}",
            format_bytes(cost.n_bytes),
            code(cost.worst_layer) if cost.worst_energy < 0.9995 else "",
        )
        for cost in costs
    ]
    left = 1 - costs[0].carried
    caption = f"{left:.1%} of the energy is outside the layers that an adapter can hold." if left > 5e-4 else ""
    return table(["rank", "keeps", "worst layer keeps", "size", "worst layer"], rows, [0, 1, 2, 3], caption)


def open_recipe(studio: Studio, path: Path, start: Path | None = None) -> tuple[Workspace, Recipe]:
    """The workspace of a recipe, and the recipe.

    Args:
        studio: says which folders may be read.
        path: the file.
        start: where relative paths in it start; None for the models folder, because an upload has no folder.

    Raises:
        RecipeError: it is not a recipe.
        NotDownloadedError: it names models of the hub that are not on this machine.
        InputError: a path is not allowed, or base and tasks do not fit.
    """
    try:
        recipe = load_recipe(path, start or studio.settings.models_dir)
    except RecipeError as error:
        # The person knows the file by its name, not by where the upload was stored.
        raise RecipeError(str(error).replace(str(path), path.name)) from None
    tasks = tuple(replace(task, path=str(allowed(studio.settings, task.path))) for task in recipe.tasks)
    base = str(allowed(studio.settings, recipe.base))
    made = Workspace(base, tasks, roles=recipe.roles, tokenizer=recipe.tokenizer)
    return load_checked(studio, made), recipe
