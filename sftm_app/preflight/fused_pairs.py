"""LoRA on modules that transformers makes of one tensor of the files, such as query, key and value of one matrix.

The files hold the maps one below the other. A pair on one of them changes its rows; pairs on several of them are one
change of the whole matrix.
"""

from __future__ import annotations

from dataclasses import replace

from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.adapter_config import LoraPair


def find_rows(module: str, architecture: Architecture) -> tuple[str, tuple[int, int, int]] | None:
    """Where the weight of a module lies in a larger tensor.

    Args:
        module: its path in memory, with or without the backbone's prefix.
        architecture: of the base.

    Returns:
        The tensor in the files, with the first row, the row after the last, and the number of all rows; None if the
        weight is not a part of a larger tensor that is known to hold such parts in order.
    """
    prefix = architecture.backbone_prefix
    plain = module.removeprefix(prefix)
    if architecture.shapes.keys().isdisjoint((f"{plain}.weight", f"{prefix}{plain}.weight")):
        return None
    parent, _, last = plain.rpartition(".")
    label = last.removesuffix("_proj")
    for name, owner in architecture.owners.items():
        first = owner.key.partition(" ")[0].removesuffix(".weight")
        fused = owner.fused
        if fused is None or not fused.sizes or label not in fused.labels or first.rpartition(".")[0] != parent:
            continue
        start, stop = fused.rows[fused.labels.index(label)]
        return name, (start, stop, sum(fused.sizes))
    return None


def join(first: LoraPair, second: LoraPair) -> LoraPair:
    """Two pairs that change other rows of one tensor, as one."""
    return replace(first, rank=first.rank + second.rank, rest=(*first.rest, second))
