"""Which tensors of an adapter replace the base's as a whole."""

from __future__ import annotations

import torch

from sftm_app.preflight.adapter_sides import TIED, AdapterSides
from sftm_app.preflight.mismatches import MAX_NAMED, listing
from sftm_app.weights.reader import open_reader


def match_whole(sides: AdapterSides) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
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
        problems.append(f"trained {listing(tied)} separately, {TIED}.")
    if altered:
        problems.append(
            f"holds {listing(altered)} twice: as a pair of factors, and as a whole tensor that is not the base's. "
            "It was trained on another base, or with another vocabulary."
        )
    return names, tuple(heads), problems


def _in_backbone(sides: AdapterSides, path: str) -> bool:
    """Whether a parameter that the base lacks would belong to the base's backbone."""
    prefix = sides.architecture.backbone_prefix
    return bool(prefix) and path.startswith(prefix)


def _equals_base(sides: AdapterSides, ours: str, theirs: str) -> bool:
    """Whether a tensor equals the base's in the adapter's dtype, which may be half precision."""
    if sides.base.tensors[ours].shape != sides.shape(theirs):
        return False
    with open_reader(sides.base) as base, open_reader(sides.task) as task:
        whole = task(theirs)
        return bool(torch.equal(base(ours).to(whole.dtype).float(), whole.float()))


def _is_duplicate(sides: AdapterSides, ours: str, path: str) -> bool:
    """Whether the adapter holds a tied parameter, with the same values, under its own name too."""
    wholes = sides.names.whole
    same = [other for other in wholes if other != path and not sides.is_tied(other) and sides.find(other) == ours]
    with open_reader(sides.task) as read:
        return any(torch.equal(read(wholes[path]), read(wholes[other])) for other in same)
