"""How a LoRA adapter lines up with the base: which weight each pair of factors changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sftm_app.architecture.adapter_names import Names, is_tied, names_in_base, take_apart
from sftm_app.architecture.architecture import Architecture
from sftm_app.preflight.matching import Match, Source
from sftm_app.preflight.mismatches import MAX_NAMED, listing
from sftm_app.weights.adapter_config import AdapterConfig, LoraPair
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.hub_names import hub_name
from sftm_app.weights.reader import open_reader

_TIED = (
    "which the base ties to another one, so that the two cannot differ in a merged model. Untie the base first "
    "(tie_word_embeddings), or train the adapter without it"
)


@dataclass(frozen=True)
class _Sides:
    """Base and task, and what is asked of both again and again."""

    base: Checkpoint
    task: Source
    architecture: Architecture
    names: Names

    @property
    def adapter(self) -> AdapterConfig:
        assert self.task.checkpoint.adapter is not None
        return self.task.checkpoint.adapter

    def find(self, path: str) -> str | None:
        """The base's tensor for a parameter of the adapter."""
        found = names_in_base(path, self.architecture)
        return next((name for name in found if name in self.base.tensors), None)

    def is_tied(self, path: str) -> bool:
        """Whether the parameter is another one's second name."""
        return is_tied(path, self.architecture)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.task.checkpoint.tensors[name].shape


def match_adapter(base: Checkpoint, task: Source, architecture: Architecture) -> tuple[Match, list[str], list[str]]:
    """Line up an adapter with the base: the match, problems that refuse the merge, notes worth knowing.

    Reads headers, and whole tables only where a file repeats one that it also changes.
    """
    sides = _Sides(base, task, architecture, take_apart(task.checkpoint.tensors))
    names, heads, said = _match_whole(sides)
    pairs, troubles = _match_pairs(sides)
    problems = list(sides.adapter.problems) + _odd_names(sides.names) + said + troubles
    if not problems and not pairs and not names:
        problems.append("changes no weight of the base. Pick another adapter, or the base that it was trained on.")
    match = Match(names, heads, pairs)
    return match, [f"{task.name}: {problem}" for problem in problems], _notes(sides, match)


def _odd_names(names: Names) -> list[str]:
    problems = []
    if names.unknown:
        problems.append(
            f"holds {len(names.unknown)} tensors that are no part of plain LoRA as PEFT saves it: "
            f"{listing(names.unknown)}. Merge the adapter into its base with PEFT (`merge_and_unload`) and pick that."
        )
    if names.twice:
        problems.append(
            f"holds {len(names.twice)} tensors twice, perhaps of two adapters in one file: {listing(names.twice)}. "
            "Save each adapter to a folder of its own."
        )
    return problems


def _match_pairs(sides: _Sides) -> tuple[dict[str, LoraPair], list[str]]:
    pairs: dict[str, LoraPair] = {}
    halves, lost, tied, misfits = [], [], [], []
    for module, factors in sides.names.factors.items():
        if len(factors) < 2:
            halves.append(f"{module} (no {'B' if 'A' in factors else 'A'})")
            continue
        path = f"{module}.weight"
        ours = sides.find(path)
        if sides.is_tied(path):
            if ours is None or not _is_same_as_table(sides, factors, ours):
                tied.append(module)
        elif ours is None:
            lost.append(module)
        elif ours in pairs:
            misfits.append(f"{module} and another module of the adapter both change {ours!r}.")
        else:
            pair, found = _pair(sides, module, ours)
            misfits += found
            pairs |= {ours: pair} if pair else {}
    problems = []
    if halves:
        problems.append(f"half of a pair is missing at {listing(halves)}. The file is incomplete: save it again.")
    if lost:
        problems.append(
            f"changes {len(lost)} modules that the base lacks: {listing(lost)}. It was trained on another base."
        )
    if tied:
        problems.append(f"changes {listing(tied)}, {_TIED}.")
    if len(misfits) > MAX_NAMED:
        misfits = [*misfits[:MAX_NAMED], f"{len(misfits) - MAX_NAMED} more pairs do not fit either."]
    return pairs, problems + misfits


def _pair(sides: _Sides, module: str, ours: str) -> tuple[LoraPair | None, list[str]]:
    """The pair at a module that changes the base's tensor `ours`, or what is wrong with it."""
    a, b = (sides.names.factors[module][half] for half in "AB")
    A, B, stored = sides.shape(a), sides.shape(b), sides.base.tensors[ours].shape
    types = [sides.task.checkpoint.tensors[name] for name in (a, b)]
    if not all(info.is_float for info in types):
        return None, [f"the factors at {module} are not floating-point numbers. Save the adapter again, unquantised."]
    if len(A) < 2 or len(B) < 2 or A[0] != B[1]:
        return None, [f"A {list(A)} and B {list(B)} at {module} do not fit together. Save the adapter again."]
    rank = sides.adapter.rank_at(module)
    if A[0] != rank:
        return None, [
            f"the rank at {module} is {A[0]}, adapter_config.json says {rank}: alpha / r would come out wrong. "
            "Take the config that was saved with these weights."
        ]
    transposed = _is_transposed(sides, module, ours)
    fits = tuple(reversed(stored)) if transposed else stored
    if len(stored) < 2 or (B[0], *A[1:]) != fits or any(size != 1 for size in B[2:]):
        return None, [
            f"A {list(A)} and B {list(B)} at {module} change a weight of shape {[B[0], *A[1:]]}, in the base "
            f"{ours!r} is {list(fits)}. It was trained on another base, or with another vocabulary."
        ]
    size = torch.Size(A).numel() + torch.Size(B).numel()
    return LoraPair(a, b, rank, sides.adapter.scaling_at(module), size, transposed), []


def _is_transposed(sides: _Sides, module: str, ours: str) -> bool:
    """Whether the weight is stored as in x out: what owns it decides, for `fan_in_fan_out` is often left unset."""
    owner = sides.architecture.owners.get(ours)
    kind = owner.kind if owner else ""
    if module in sides.names.tables or kind == "linear_transposed":
        return True
    if kind in ("linear", "convolution"):
        return False
    m, n = (sides.shape(sides.names.factors[module][half])[axis] for half, axis in (("B", 0), ("A", 1)))
    stored = sides.base.tensors[ours].shape
    return sides.adapter.fan_in_fan_out if m == n else stored == (n, m)


def _match_whole(sides: _Sides) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Tensors that replace the base's: modules_to_save, trained biases, and tables that are saved along."""
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
            # PEFT saves an embedding table beside the pair that changes it: nothing is to be done unless it differs.
            if ours is None or not (_equals_base(sides, ours, theirs) or _is_said_twice(sides, ours, path)):
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
        problems.append(f"{'; '.join(reshaped[:MAX_NAMED])}. Its base, or its vocabulary, is another one.")
    if tied:
        problems.append(f"trained {listing(tied)} apart, {_TIED}.")
    if altered:
        problems.append(
            f"{listing(altered)} stands in it twice, changed by a pair of factors and whole, and the whole one is not "
            "the base's. It was trained on another base, or with another vocabulary."
        )
    return names, tuple(heads), problems


def _in_backbone(sides: _Sides, path: str) -> bool:
    """Whether a parameter that the base lacks would belong to its backbone."""
    prefix = sides.architecture.backbone_prefix
    return bool(prefix) and path.startswith(prefix)


def _equals_base(sides: _Sides, ours: str, theirs: str) -> bool:
    """Compared in the adapter's type: it may have been saved in half precision."""
    if sides.base.tensors[ours].shape != sides.shape(theirs):
        return False
    with open_reader(sides.base) as base, open_reader(sides.task.checkpoint) as task:
        whole = task(theirs)
        return bool(torch.equal(base(ours).to(whole.dtype).float(), whole.float()))


def _is_said_twice(sides: _Sides, ours: str, path: str) -> bool:
    """Whether a tied parameter is saved whole with the same values under its own name too."""
    wholes = sides.names.whole
    same = [other for other in wholes if other != path and not sides.is_tied(other) and sides.find(other) == ours]
    with open_reader(sides.task.checkpoint) as read:
        return any(torch.equal(read(wholes[path]), read(wholes[other])) for other in same)


def _is_same_as_table(sides: _Sides, factors: dict[str, str], name: str) -> bool:
    """Whether a pair on a tied parameter does what another pair does to the table: then they are one change."""
    for module in sides.names.tables:
        table = sides.names.factors[module]
        if len(table) == 2 and sides.find(f"{module}.weight") == name and not sides.is_tied(f"{module}.weight"):
            with open_reader(sides.task.checkpoint) as read:
                ours, theirs = ((read(pair["A"]), read(pair["B"])) for pair in (table, factors))
            same = all(map(torch.equal, ours, theirs)) or all(map(torch.equal, ours, (theirs[1].T, theirs[0].T)))
            scaling = [sides.adapter.scaling_at(path) for path in (module, _module_of(sides, factors))]
            return same and scaling[0] == scaling[1]
    return False


def _module_of(sides: _Sides, factors: dict[str, str]) -> str:
    return next(module for module, each in sides.names.factors.items() if each is factors)


def _notes(sides: _Sides, match: Match) -> list[str]:
    return [
        f"{sides.task.name}: {note}"
        for note in (*_about_base(sides), *_about_tables(sides, match), *_about_heads(sides, match))
    ]


def _about_base(sides: _Sides) -> Iterator[str]:
    """The base named in the adapter is never fetched; a name that is quite another is worth a word."""
    theirs = sides.adapter.base_name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    named = (sides.base.config.get("_name_or_path"), hub_name(sides.base.path), sides.base.path.name)
    ours = {str(name).partition("@")[0].rstrip("/").rpartition("/")[2].lower() for name in named if name}
    if theirs and theirs.lower() not in ours:
        yield f"says that it was trained on {sides.adapter.base_name!r}. Make sure that this base is the same model."


def _about_tables(sides: _Sides, match: Match) -> Iterator[str]:
    tied, owners = set(sides.architecture.ties.values()), sides.architecture.owners
    changed = [ours for ours in (*match.pairs, *match.names) if (owner := owners.get(ours)) and owner.key in tied]
    paths = [*(f"{module}.weight" for module in sides.names.factors), *sides.names.whole]
    alone = [] if any(map(sides.is_tied, paths)) else changed
    if alone:
        yield (
            f"changes {listing(alone)}, which the base uses in its output layer too: in a merged model the change acts "
            "in both places, in the adapter alone it acts in the first."
        )


def _about_heads(sides: _Sides, match: Match) -> Iterator[str]:
    if match.heads:
        yield f"{listing(list(match.heads))} belong to its own head, which is kept apart, not merged."
    owners = sides.architecture.owners
    shared = [ours for ours in match.names if (owner := owners.get(ours)) and not owner.in_backbone]
    if shared:
        yield (
            f"its trained {listing(shared)} are merged into the base's head of the same shape. If their classes mean "
            "something else, take a base without a head."
        )
