"""How a LoRA adapter matches the base: which weight each pair of factors changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sftm_app.architecture.adapter_names import AdapterNames, is_tied, parse_names
from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.preflight.adapter_paths import find_paths, mangled_paths
from sftm_app.preflight.expert_pairs import find_stacks, pairs_of
from sftm_app.preflight.fused_pairs import find_rows, join
from sftm_app.preflight.matching import Match
from sftm_app.preflight.mismatches import MAX_NAMED, listing
from sftm_app.weights.adapter_config import AdapterConfig, LoraPair
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name
from sftm_app.weights.reader import open_reader

_TIED = (
    "which the base ties to another parameter, so they cannot differ in a merged model. Untie the base first "
    "(tie_word_embeddings), or train the adapter without it"
)


@dataclass(frozen=True)
class _Sides:
    """The base and an adapter, with the base's architecture and the adapter's names."""

    base: Checkpoint
    task: Checkpoint
    architecture: Architecture
    names: AdapterNames
    found: Mapping[str, str]

    @property
    def adapter(self) -> AdapterConfig:
        assert self.task.adapter is not None
        return self.task.adapter

    def find(self, path: str) -> str | None:
        """The base's tensor for a parameter of the adapter."""
        return self.found.get(path)

    def is_tied(self, path: str) -> bool:
        """Whether the path is a second name of another parameter."""
        return is_tied(path, self.architecture)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.task.tensors[name].shape


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
        return _match(_Sides(base, task, architecture, names, found), ())
    known = set(task.adapter.alpha_names.values())
    names = replace(names, unknown=[name for name in names.unknown if name not in known])
    written = {module: _own_path(module, task.adapter) for module in names.factors}
    paths = written
    if task.adapter.mangled:
        table = mangled_paths(base, architecture)
        paths = {module: table.get(path) or path for module, path in written.items()}
    resolved = find_paths((f"{path}.weight" for path in paths.values()), base, architecture, architectures)
    found = {f"{m}.weight": resolved[f"{path}.weight"] for m, path in paths.items() if f"{path}.weight" in resolved}
    # A file may be for several models: the parts that change nothing of the base are for others.
    ours = {_component(module, task.adapter) for module in names.factors if f"{module}.weight" in found}
    others = [module for module in names.factors if ours and _component(module, task.adapter) not in ours]
    kept = {module: pair for module, pair in names.factors.items() if module not in others}
    left = dict.fromkeys(task.adapter.alpha_names.values(), "alphas, multiplied into the factors")
    left |= {
        name: f"for {_component(module, task.adapter)}, another model"
        for module in others
        for name in names.factors[module].values()
    }
    notes: tuple[str, ...] = (f"is a LoRA file that {task.adapter.format} wrote, read with its own rank and alpha.",)
    if others:
        parts = sorted({_component(module, task.adapter) for module in others})
        notes += (f"{len(others)} of its pairs are for {', '.join(parts)}, another model than the base: left out.",)
    return _match(_Sides(base, task, architecture, replace(names, factors=kept), found), notes, left)


def _component(module: str, adapter: AdapterConfig) -> str:
    return module.partition(".")[0] if adapter.components else ""


def _own_path(module: str, adapter: AdapterConfig) -> str:
    """A module's path without the name of the model that it is for."""
    return module.partition(".")[2] if adapter.components else module


def _match(sides: _Sides, more_notes: tuple[str, ...], left: Mapping[str, str] | None = None) -> Match:
    names, heads, whole_problems = _match_whole(sides)
    pairs, pair_problems = _match_pairs(sides)
    problems = [*sides.adapter.problems, *_name_problems(sides), *whole_problems, *pair_problems]
    if not problems and not pairs and not names:
        problems.append("changes no weight of the base. Pick another adapter, or the base that it was trained on.")
    notes = (*_base_note(sides), *_table_note(sides, [*pairs, *names]), *_head_notes(sides, names, heads))
    return Match(names, heads, pairs, problems=tuple(problems), notes=more_notes + notes, left=dict(left or {}))


def _name_problems(sides: _Sides) -> list[str]:
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


def _match_pairs(sides: _Sides) -> tuple[dict[str, LoraPair], list[str]]:
    pairs: dict[str, LoraPair] = {}
    halves, lost, tied = [], [], []
    stacks, misfits = find_stacks(sides.names.factors, sides.task, sides.adapter, sides.architecture)
    for module, factors in sides.names.factors.items():
        if module in stacks:
            made = pairs_of(stacks[module], factors, sides.task, sides.adapter, sides.architecture)
            misfits += [made] if isinstance(made, str) else []
            pairs |= {} if isinstance(made, str) else made
            continue
        if len(factors) < 2:
            halves.append(f"{module} (no {'B' if 'A' in factors else 'A'})")
            continue
        path = f"{module}.weight"
        ours = sides.find(path)
        if sides.is_tied(path):
            if ours is None or not _is_same_as_table(sides, module, ours):
                tied.append(module)
        elif ours is None and (place := find_rows(_own_path(module, sides.adapter), sides.architecture)):
            made = _pair_on_rows(sides, module, *place)
            if isinstance(made, str):
                misfits.append(made)
            else:
                name = place[0]
                pairs[name] = join(pairs[name], made) if name in pairs else made
        elif ours is None:
            lost.append(module)
        elif ours in pairs:
            misfits.append(f"{module} and another module of the adapter both change {ours!r}.")
        else:
            pair = _pair(sides, module, ours)
            if isinstance(pair, LoraPair):
                pairs[ours] = pair
            else:
                misfits.append(pair)
    problems = []
    if halves:
        problems.append(f"half of a pair is missing at {listing(halves)}. The file is incomplete: save it again.")
    if lost:
        problems.append(f"changes {len(lost)} modules that the base lacks: {listing(lost)}. {_lost_hint(sides, lost)}")
    if tied:
        problems.append(f"changes {listing(tied)}, {_TIED}.")
    if len(misfits) > MAX_NAMED:
        misfits = [*misfits[:MAX_NAMED], f"{len(misfits) - MAX_NAMED} more pairs do not fit either."]
    return pairs, problems + misfits


def _pair_on_rows(sides: _Sides, module: str, ours: str, within: tuple[int, int, int]) -> LoraPair | str:
    """The pair at a module whose weight is some rows of the base's tensor `ours`."""
    start, stop, rows = within
    a, b = (sides.names.factors[module][half] for half in "AB")
    A, B = (sides.shape(name)[::-1] if sides.adapter.flipped else sides.shape(name) for name in (a, b))
    stored = sides.base.tensors[ours].shape
    rank = sides.adapter.rank_at(module) or A[0]
    if (
        len(A) != 2
        or len(B) != 2
        or A[0] != B[1]
        or rank != A[0]
        or (B[0], A[1], rows) != (stop - start, *stored[::-1])
    ):
        return (
            f"A {list(A)} and B {list(B)} at {module} do not fit rows {start} to {stop} of {ours!r} {list(stored)}. "
            "It was trained on another base, or its config is another one's."
        )
    alpha = sides.adapter.alpha_names.get(module)
    of_file = sides.adapter.r == 0 or alpha
    scaling = _scaling(sides, alpha, rank) if of_file else sides.adapter.scaling_at(module)
    size = torch.Size(A).numel() + torch.Size(B).numel()
    return LoraPair(a, b, rank, scaling, size, flipped=sides.adapter.flipped, within=within)


def _lost_hint(sides: _Sides, lost: Sequence[str]) -> str:
    prefix, shapes = sides.architecture.backbone_prefix, sides.architecture.shapes
    paths = [_own_path(module, sides.adapter) for module in lost]
    if any(f"{path}.weight" in shapes or f"{prefix}{path}.weight" in shapes for path in paths):
        return (
            "The model has such modules, but the base's files hold them inside larger tensors, in an order of their "
            "own. Merge the adapter into its base with PEFT (`merge_and_unload`) and pick the result."
        )
    if sides.adapter.format == "PEFT":
        return "It was trained on another base."
    return (
        f"It was trained on another base, or {sides.adapter.format} has names of its own for this model. Convert the "
        "file to PEFT's format with the tool that wrote it, or merge it into its base there and pick the result."
    )


def _pair(sides: _Sides, module: str, ours: str) -> LoraPair | str:
    """The pair at a module, which changes the base's tensor `ours`, or a sentence on what is wrong with it."""
    a, b = (sides.names.factors[module][half] for half in "AB")
    A, B, stored = sides.shape(a), sides.shape(b), sides.base.tensors[ours].shape
    if sides.adapter.flipped:
        A, B = A[::-1], B[::-1]
    if not all(sides.task.tensors[name].is_float for name in (a, b)):
        return f"the factors at {module} are not floating-point numbers. Save the adapter again, without quantisation."
    if len(A) > 2 and len(B) > 2 and B[1] and A[0] != B[1] and A[0] % B[1] == 0 and A[1] == B[0] != stored[1]:
        return (
            f"{module} is a convolution in {A[0] // B[1]} groups. PEFT's A there reads all {A[1]} input channels, the "
            f"layer's own weight only {stored[1]} for each output, so the change is none of that weight. Train the "
            "adapter without this module, or apply it when the model runs."
        )
    if len(A) < 2 or len(B) < 2 or A[0] != B[1]:
        return f"A {list(A)} and B {list(B)} at {module} do not fit together. Save the adapter again."
    settings = sides.adapter.of_components.get(_component(module, sides.adapter), sides.adapter)
    path = _own_path(module, sides.adapter)
    rank = settings.rank_at(path) or A[0]
    if A[0] != rank:
        return (
            f"the rank at {module} is {A[0]}, adapter_config.json says {rank}: alpha / r would be wrong. "
            "Use the config that was saved with these weights."
        )
    transposed = _is_transposed(sides, module, ours)
    fits = tuple(reversed(stored)) if transposed else stored
    if len(stored) < 2 or (B[0], *A[1:]) != fits or any(size != 1 for size in B[2:]):
        return (
            f"A {list(A)} and B {list(B)} at {module} change a weight of shape {[B[0], *A[1:]]}, in the base "
            f"{ours!r} is {list(fits)}. It was trained on another base, or with another vocabulary."
        )
    size = torch.Size(A).numel() + torch.Size(B).numel()
    alpha = sides.adapter.alpha_names.get(module)
    scaling = _scaling(sides, alpha, rank) if settings.r == 0 or alpha else settings.scaling_at(path)
    return LoraPair(a, b, rank, scaling, size, transposed, sides.adapter.flipped)


def _scaling(sides: _Sides, alpha: str | None, rank: int) -> float:
    """The factor on B @ A in another tool's format: from its config, or alpha / rank; 1 where it gives no alpha."""
    if sides.adapter.scale is not None:
        return sides.adapter.scale
    if alpha is None:
        return 1.0
    with open_reader(sides.task) as read:
        return float(read.finite(alpha).sum()) / rank


def _is_transposed(sides: _Sides, module: str, ours: str) -> bool:
    """Whether the weight is stored as in x out. Its owner decides, since `fan_in_fan_out` is often not set."""
    owner = sides.architecture.owners.get(ours)
    kind = owner.kind if owner else ""
    if module in sides.names.tables or kind == "linear_transposed":
        return True
    if kind in ("linear", "convolution"):
        return False
    ends = (("B", -1), ("A", 0)) if sides.adapter.flipped else (("B", 0), ("A", 1))
    m, n = (sides.shape(sides.names.factors[module][half])[axis] for half, axis in ends)
    stored = sides.base.tensors[ours].shape
    return sides.adapter.fan_in_fan_out if m == n else stored == (n, m)


def _match_whole(sides: _Sides) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Match tensors that replace the base's: modules_to_save, trained biases, and tables that PEFT saves too.

    Returns the names in the base -> in the adapter, the adapter's heads, and problems.
    """
    names: dict[str, str] = {}
    heads: list[str] = []
    lost: list[str] = []
    reshaped: list[str] = []
    tied: list[str] = []
    altered: list[str] = []
    changed = {f"{module}.weight" for module in sides.names.factors}
    for path, theirs in sides.names.whole.items():
        ours = sides.find(path)
        owner = sides.architecture.owners.get(ours) if ours else None
        if path in changed or sides.is_tied(path):
            # PEFT saves an embedding table together with the pair that changes it. It matters only if it differs.
            if ours is None or not (_equals_base(sides, ours, theirs) or _is_duplicate(sides, ours, path)):
                (tied if sides.is_tied(path) else altered).append(path)
        elif ours is None:
            (lost if _in_backbone(sides, path) else heads).append(theirs)
        elif sides.base.tensors[ours].shape == sides.shape(theirs):
            names[ours] = theirs
        elif owner is not None and not owner.in_backbone:
            heads.append(theirs)
        else:
            ours_shape, shape = list(sides.base.tensors[ours].shape), list(sides.shape(theirs))
            reshaped.append(f"{path} has shape {shape}, in the base it is {ours_shape}")
    problems = []
    if lost:
        problems.append(
            f"holds {len(lost)} tensors that the base lacks: {listing(lost)}. It was trained on another base."
        )
    if reshaped:
        problems.append(
            f"{'; '.join(reshaped[:MAX_NAMED])}. It was trained on another base, or with another vocabulary."
        )
    if tied:
        problems.append(f"trained {listing(tied)} separately, {_TIED}.")
    if altered:
        problems.append(
            f"holds {listing(altered)} twice: as a pair of factors, and as a whole tensor that is not the base's. "
            "It was trained on another base, or with another vocabulary."
        )
    return names, tuple(heads), problems


def _in_backbone(sides: _Sides, path: str) -> bool:
    """Whether a parameter that the base lacks would belong to the base's backbone."""
    prefix = sides.architecture.backbone_prefix
    return bool(prefix) and path.startswith(prefix)


def _equals_base(sides: _Sides, ours: str, theirs: str) -> bool:
    """Whether a tensor equals the base's in the adapter's dtype, which may be half precision."""
    if sides.base.tensors[ours].shape != sides.shape(theirs):
        return False
    with open_reader(sides.base) as base, open_reader(sides.task) as task:
        whole = task(theirs)
        return bool(torch.equal(base(ours).to(whole.dtype).float(), whole.float()))


def _is_duplicate(sides: _Sides, ours: str, path: str) -> bool:
    """Whether the adapter holds a tied parameter, with the same values, under its own name too."""
    wholes = sides.names.whole
    same = [other for other in wholes if other != path and not sides.is_tied(other) and sides.find(other) == ours]
    with open_reader(sides.task) as read:
        return any(torch.equal(read(wholes[path]), read(wholes[other])) for other in same)


def _is_same_as_table(sides: _Sides, module: str, name: str) -> bool:
    """Whether the pair at a tied module equals the pair on the table `name`: then the two are one change."""
    factors = sides.names.factors
    for table in sides.names.tables:
        if len(factors[table]) == 2 and sides.find(f"{table}.weight") == name and not sides.is_tied(f"{table}.weight"):
            with open_reader(sides.task) as read:
                A, B, other_A, other_B = (read(factors[path][half]) for path in (table, module) for half in "AB")
            same = torch.equal(A, other_A) and torch.equal(B, other_B)
            flipped = torch.equal(A, other_B.T) and torch.equal(B, other_A.T)
            return (same or flipped) and sides.adapter.scaling_at(table) == sides.adapter.scaling_at(module)
    return False


def _base_note(sides: _Sides) -> Iterator[str]:
    """A note if the adapter names another base. That base is never fetched."""
    theirs = sides.adapter.base_name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    known = (sides.base.config.get("_name_or_path"), hub_name(sides.base.path), sides.base.path.name)
    ours = {str(name).partition("@")[0].rstrip("/").rpartition("/")[2].lower() for name in known if name}
    if theirs and theirs.lower() not in ours:
        yield f"says that it was trained on {sides.adapter.base_name!r}. Make sure that this base is the same model."


def _table_note(sides: _Sides, changed: Sequence[str]) -> Iterator[str]:
    """A note if the adapter changes an embedding that the base also uses as its output matrix."""
    tied, owners = set(sides.architecture.ties.values()), sides.architecture.owners
    shared = [name for name in changed if (owner := owners.get(name)) and owner.key in tied]
    paths = [*(f"{module}.weight" for module in sides.names.factors), *sides.names.whole]
    if shared and not any(map(sides.is_tied, paths)):
        yield (
            f"changes {listing(shared)}, which the base also uses in its output layer: a merged model is changed in "
            "both places, the adapter alone changes only the first."
        )


def _head_notes(sides: _Sides, names: Mapping[str, str], heads: Sequence[str]) -> Iterator[str]:
    if heads:
        yield f"{listing(heads)} belong to its own head, which is kept separately, not merged."
    owners = sides.architecture.owners
    shared = [ours for ours in names if (owner := owners.get(ours)) and not owner.in_backbone]
    if shared:
        yield (
            f"its trained {listing(shared)} are merged into the base's head of the same shape. If their classes mean "
            "something else, take a base without a head."
        )
