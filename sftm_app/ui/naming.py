"""Names of merges: what was asked for, never when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sftm_app.methods import METHODS
from sftm_app.planning.recipe import Output, Recipe
from sftm_app.ui.wording import format_rank, params_in_words

MOST_WEIGHTS_NAMED = 2


def recipe_name(recipe: Recipe) -> str:
    """The method, and what differs from its defaults and changes the result: "SFTM, rank 90% energy, loading 5"."""
    return _in_words(recipe, MOST_WEIGHTS_NAMED)


def distinct_names(recipes: Sequence[Recipe]) -> list[str]:
    """The names of merges in the order in which they were made.

    Equal names get what tells them apart: every weight, role and option of the output. Merges of one and the same
    recipe are numbered.
    """
    short = [recipe_name(recipe) for recipe in recipes]
    times = Counter(short)
    names = [name if times[name] == 1 else _at_length(recipe) for name, recipe in zip(short, recipes, strict=True)]
    # If the details are all the same, the short name says as much.
    detailed = {name: set(n for n, s in zip(names, short, strict=True) if s == name) for name in times}
    names = [name if len(detailed[one]) > 1 else one for name, one in zip(names, short, strict=True)]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _in_words(recipe: Recipe, most_weights: int) -> str:
    output = recipe.output
    words = [METHODS[recipe.method].title, *params_in_words(recipe.params, changed=True)]
    weights = [f"{task.name} weight {task.weight:g}" for task in recipe.tasks if task.weight != 1]
    words += weights if len(weights) <= most_weights else [f"{len(weights)} weights"]
    words += ["fused maps split"] if recipe.split_fused else []
    words += ["roles set"] if recipe.roles else []
    words += [f"tokenizer: {recipe.tokenizer}"] if recipe.tokenizer else []
    if output.kind == "adapter":
        words.append("adapter" if output.rank is None else f"adapter of rank {format_rank(output.rank)}")
    words += [f"{100 * output.energy:g}% of the energy"] if output.energy is not None else []
    return ", ".join([*words, *([output.dtype] if output.dtype else [])])


def _at_length(recipe: Recipe) -> str:
    """With every weight and role, and with what changes only how the merge is written."""
    words = [_in_words(recipe, len(recipe.tasks)), *(f"{pattern} as {role}" for pattern, role in recipe.roles)]
    if recipe.output.max_shard_size != Output.max_shard_size:
        words.append(f"shards of {recipe.output.max_shard_size}")
    words += [f"on {recipe.device}"] if recipe.device != Recipe.device else []
    return ", ".join(words)
