"""Which weight of the base each pair of an adapter's factors changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sftm_app.preflight.adapter_sides import TIED, AdapterSides, component_of, own_path
from sftm_app.preflight.expert_pairs import find_stacks, pairs_of
from sftm_app.preflight.fused_pairs import find_rows, join
from sftm_app.preflight.mismatches import MAX_NAMED, listing
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.reader import open_reader


def match_pairs(sides: AdapterSides) -> tuple[dict[str, LoraPair], list[str]]:
    """Match the pairs of factors. Returns name in the base -> the pair that changes it, and problems in sentences."""
    pairs: dict[str, LoraPair] = {}
    halves, lost, tied = [], [], []
    stacks, misfits = find_stacks(sides.names.factors, sides.task, sides.adapter, sides.architecture)
    for module, factors in sides.names.factors.items():
        if module in stacks:
            experts = pairs_of(stacks[module], factors, sides.task, sides.adapter, sides.architecture)
            misfits += [experts] if isinstance(experts, str) else []
            pairs |= {} if isinstance(experts, str) else experts
            continue
        if len(factors) < 2:
            halves.append(f"{module} (no {'B' if 'A' in factors else 'A'})")
            continue
        path = f"{module}.weight"
        ours = sides.find(path)
        if sides.is_tied(path):
            if ours is None or not _is_same_as_table(sides, module, ours):
                tied.append(module)
        elif ours is None and (place := find_rows(own_path(module, sides.adapter), sides.architecture)):
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
        problems.append(f"changes {listing(tied)}, {TIED}.")
    if len(misfits) > MAX_NAMED:
        misfits = [*misfits[:MAX_NAMED], f"{len(misfits) - MAX_NAMED} more pairs do not fit either."]
    return pairs, problems + misfits


def _pair_on_rows(sides: AdapterSides, module: str, ours: str, within: tuple[int, int, int]) -> LoraPair | str:
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


def _lost_hint(sides: AdapterSides, lost: Sequence[str]) -> str:
    prefix, shapes = sides.architecture.backbone_prefix, sides.architecture.shapes
    paths = [own_path(module, sides.adapter) for module in lost]
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


def _pair(sides: AdapterSides, module: str, ours: str) -> LoraPair | str:
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
    settings = sides.adapter.of_components.get(component_of(module, sides.adapter), sides.adapter)
    path = own_path(module, sides.adapter)
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


def _scaling(sides: AdapterSides, alpha: str | None, rank: int) -> float:
    """The factor on B @ A in another tool's format: from its config, or alpha / rank; 1 where it gives no alpha."""
    if sides.adapter.scale is not None:
        return sides.adapter.scale
    if alpha is None:
        return 1.0
    with open_reader(sides.task) as read:
        return float(read.finite(alpha).sum()) / rank


def _is_transposed(sides: AdapterSides, module: str, ours: str) -> bool:
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


def _is_same_as_table(sides: AdapterSides, module: str, name: str) -> bool:
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
