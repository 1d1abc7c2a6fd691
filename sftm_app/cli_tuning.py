"""What `sftm search` and `sftm scaling` do and print."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sftm_app.api import search_recipe
from sftm_app.errors import OutputError, RecipeError
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.recipe import Recipe, recipe_to_yaml
from sftm_app.session import open_session
from sftm_app.tuning.headless import SearchResult, run_scalings
from sftm_app.tuning.search import Search
from sftm_app.ui.wording import settings_title
from sftm_app.units import format_count, format_duration


def refuse_existing_file(path: Path | None) -> None:
    """Raise OutputError if there is a file already."""
    if path is not None and path.exists():
        raise OutputError(f"{path}: exists already. Give --output another name, or remove it first.")


def run_search(options: argparse.Namespace, recipe: Recipe, show: Callable[[Search], None]) -> SearchResult:
    """Carry out the search of a command. Errors as of `api.search`."""
    methods = tuple(name.strip() for name in options.methods.split(",")) if options.methods else ()
    return search_recipe(
        recipe,
        options.samples,
        open_session(recipe.device),
        options.trials,
        options.minutes,
        methods,
        not options.equal_weights,
        options.limit,
        options.output_dir,
        show,
    )


def search_words(step: Search) -> str:
    """What a search is at, behind its progress bar."""
    best = f", best {step.best.score:.1%}" if step.best and step.best.score is not None else ""
    left = f"{format_duration(step.remaining_s)} left, " if step.remaining_s is not None else ""
    words = {"own": "the tasks' own models", "test": "the test samples", "done": "done"}
    phase = words.get(step.phase, f"trial {len(step.tried) + 1}")
    return f"{left}{phase}{best}"


def print_search(found: SearchResult, output: Path | None) -> None:
    """Print the models on the test samples and the best settings, and write the best recipe to `output`."""
    for sentence in found.left_out:
        print(sentence)
    recipe = found.recipe
    best = settings_title(MergeSettings(recipe.method, recipe.params, found.best.settings.weights))
    print(f"Best of {format_count(len(found.tried), 'trial')}: {best}")
    if len(set(found.best.settings.weights)) > 1:
        print("  weights: " + ", ".join(f"{task.name} {task.weight:g}" for task in recipe.tasks))
    print(f"  {found.best.score:.1%} of the tasks' own accuracy, on the samples that chose it")
    counts = sorted({len(given) for given in found.rows[0].measurement.correct.values()})
    print(f"Mean accuracy on {counts[0]} other samples per task, with 95 % intervals:")
    for row in found.rows:
        if row.accuracy is not None:
            title = f"best: {best}" if row.candidate.key == found.best_key else row.candidate.title
            print(f"  {row.accuracy.value:6.1%}  ({row.accuracy.low:.1%} to {row.accuracy.high:.1%})  {title}")
    print(found.verdict)
    print(f"Trials: {found.folder}")
    if output is not None:
        output.write_text(recipe_to_yaml(recipe), encoding="utf-8")
        print(f"Recipe of the best: {output}")


def print_scaling(options: argparse.Namespace, recipe: Recipe) -> None:
    """Pick a scaling, print how far the merge is from the tasks' own models at each, and write the recipe.

    Raises:
        OutputError: the output exists.
        RecipeError: the scalings are no numbers.
        InputError: as of `api.pick_scaling`.
    """
    refuse_existing_file(options.output)
    try:
        scalings = [float(one) for one in options.scalings.split(",")] if options.scalings else []
    except ValueError:
        raise RecipeError(f"--scalings {options.scalings!r} should be numbers with commas between.") from None
    print("scaling  divergence from the tasks' own models")
    found = run_scalings(
        recipe,
        options.inputs,
        open_session(recipe.device),
        scalings,
        lambda one: print(f"{one.scaling:7g}  {one.divergence:.4f}", flush=True),
    )
    print(f"Picked: {found.picked.scaling:g}")
    if options.output is not None:
        options.output.write_text(recipe_to_yaml(found.recipe), encoding="utf-8")
        print(f"Recipe with it: {options.output}")
