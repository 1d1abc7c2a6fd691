"""How a LoRA adapter matches the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sftm_app.architecture.adapter_names import parse_names
from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.vocabulary_tables import vocabulary_size
from sftm_app.preflight.adapter_pairs import match_pairs
from sftm_app.preflight.adapter_paths import find_paths, mangled_paths
from sftm_app.preflight.adapter_sides import AdapterSides, component_of, own_path
from sftm_app.preflight.adapter_wholes import match_whole
from sftm_app.preflight.matching import Match
from sftm_app.preflight.mismatches import listing
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name


def match_adapter(
    base: Checkpoint, task: Checkpoint, architecture: Architecture, architectures: ArchitectureCache
) -> Match:
    """Match an adapter with the base.

    Reads headers only; the tensors of tables that a file holds both whole and as a pair of factors; and single numbers.
    """
    assert task.adapter is not None
    names = parse_names(task.tensors)
    asked = [*(f"{module}.weight" for module in names.factors), *names.whole]
    if task.adapter.format == "PEFT":
        found = find_paths(asked, base, architecture, architectures)
        return _match(AdapterSides(base, task, architecture, names, found), ())
    known = set(task.adapter.alpha_names.values())
    names = replace(names, unknown=[name for name in names.unknown if name not in known])
    written = {module: own_path(module, task.adapter) for module in names.factors}
    paths = written
    if task.adapter.mangled:
        table = mangled_paths(base, architecture)
        paths = {module: table.get(path) or path for module, path in written.items()}
    resolved = find_paths((f"{path}.weight" for path in paths.values()), base, architecture, architectures)
    found = {f"{m}.weight": resolved[f"{path}.weight"] for m, path in paths.items() if f"{path}.weight" in resolved}
    # A file may be for several models: the parts that change nothing of the base are for others.
    ours = {component_of(module, task.adapter) for module in names.factors if f"{module}.weight" in found}
    others = [module for module in names.factors if ours and component_of(module, task.adapter) not in ours]
    kept = {module: pair for module, pair in names.factors.items() if module not in others}
    left = dict.fromkeys(task.adapter.alpha_names.values(), "alphas, multiplied into the factors")
    left |= {
        name: f"for {component_of(module, task.adapter)}, another model"
        for module in others
        for name in names.factors[module].values()
    }
    notes: tuple[str, ...] = (f"is a LoRA file that {task.adapter.format} wrote, read with its own rank and alpha.",)
    if others:
        parts = sorted({component_of(module, task.adapter) for module in others})
        notes += (f"{len(others)} of its pairs are for {', '.join(parts)}, another model than the base: left out.",)
    return _match(AdapterSides(base, task, architecture, replace(names, factors=kept), found), notes, left)


def _match(sides: AdapterSides, more_notes: tuple[str, ...], left: Mapping[str, str] | None = None) -> Match:
    names, heads, whole_problems = match_whole(sides)
    pairs, pair_problems = match_pairs(sides)
    problems = [*sides.adapter.problems, *_name_problems(sides), *whole_problems, *pair_problems]
    if not problems and not pairs and not names:
        problems.append("changes no weight of the base. Pick another adapter, or the base that it was trained on.")
    notes = (*_base_note(sides), *_table_note(sides, [*pairs, *names]), *_head_notes(sides, names, heads))
    return Match(names, heads, pairs, problems=tuple(problems), notes=more_notes + notes, left=dict(left or {}))


def _name_problems(sides: AdapterSides) -> list[str]:
    problems = []
    names = sides.names
    if names.unknown and sides.adapter.format == "PEFT":
        problems.append(
            f"holds {len(names.unknown)} tensors that are not part of plain LoRA as PEFT saves it: "
            f"{listing(names.unknown)}. Merge the adapter into its base with PEFT (`merge_and_unload`) and pick that."
        )
    if names.duplicates:
        problems.append(
            f"holds {len(names.duplicates)} tensors twice, perhaps of two adapters in one file: "
            f"{listing(names.duplicates)}. Save each adapter to its own folder."
        )
    return problems


def _base_note(sides: AdapterSides) -> Iterator[str]:
    """A note if the adapter names another base. That base is never fetched."""
    theirs = sides.adapter.base_name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    known = (sides.base.config.get("_name_or_path"), hub_name(sides.base.path), sides.base.path.name)
    ours = {str(name).partition("@")[0].rstrip("/").rpartition("/")[2].lower() for name in known if name}
    if theirs and theirs.lower() not in ours:
        yield f"says that it was trained on {sides.adapter.base_name!r}. Make sure that this base is the same model."


def _table_note(sides: AdapterSides, changed: Sequence[str]) -> Iterator[str]:
    """A note if the adapter changes an embedding that the base also uses as its output matrix."""
    tied, owners = set(sides.architecture.ties.values()), sides.architecture.owners
    shared = [name for name in changed if (owner := owners.get(name)) and owner.key in tied]
    paths = [*(f"{module}.weight" for module in sides.names.factors), *sides.names.whole]
    if shared and not any(map(sides.is_tied, paths)):
        yield (
            f"changes {listing(shared)}, which the base also uses in its output layer: a merged model is changed in "
            "both places, the adapter alone changes only the first."
        )


def _head_notes(sides: AdapterSides, names: Mapping[str, str], heads: Sequence[str]) -> Iterator[str]:
    if heads:
        yield f"{listing(heads)} belong to its own head, which is kept separately, not merged."
    owners, tokens = sides.architecture.owners, vocabulary_size(sides.base.config)
    # What an output matrix of a language model means is said by the tokenizers.
    classes = [ours for ours in names if sides.base.tensors[ours].shape[:1] != (tokens,)]
    shared = [ours for ours in classes if (owner := owners.get(ours)) and not owner.in_backbone]
    if shared:
        yield (
            f"its trained {listing(shared)} are merged into the base's head of the same shape. If their classes mean "
            "something else, take a base without a head."
        )
