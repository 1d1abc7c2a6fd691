"""What a fine-tune costs as a LoRA adapter: for each rank, the share of its change that is kept, and the size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.linalg.factors import cumulative_energy
from sftm_app.linalg.low_rank import LowRank
from sftm_app.output.adapter.changes import tensor_deltas
from sftm_app.output.adapter.files import adapter_dtype
from sftm_app.output.adapter.layout import lay_out
from sftm_app.output.progress import Clock, Progress
from sftm_app.planning.plan import Plan
from sftm_app.session import Session


@dataclass(frozen=True)
class RankCost:
    """An adapter of one rank: the share (0..1) of the layers' squared change that it keeps, overall and in the layer
    that loses most, and its bytes. `carried` is the share of the whole change that is in those layers at all."""

    rank: int
    energy: float
    worst_energy: float
    worst_layer: str
    n_bytes: int
    carried: float


def rank_costs(
    plan: Plan, session: Session, progress: Callable[[Progress], None] | None = None
) -> tuple[RankCost, ...]:
    """The cost at ranks 1, 2, 4, ... up to the highest that any layer has. Nothing is written.

    progress: called after each tensor.

    Raises
        InputError: no linear layer changes; and what run_deltas() raises.
    """
    clock, carriers = Clock(plan), lay_out(plan)
    layers: dict[str, tuple[Tensor, float, int]] = {}  # name -> shares by rank, squared change, elements a rank takes
    squares: list[float] = []
    fixed = 0
    for found in tensor_deltas(plan, session):
        carrier, shape = carriers[found.entry.name], found.entry.output.shape
        squares.append(found.square)
        if found.square and found.delta is not None:
            if carrier.way == "pair" or (carrier.way == "table" and isinstance(found.delta, LowRank)):
                thin = sum(found.delta.shape) * len(carrier.paths)
                layers[found.entry.name] = (cumulative_energy(found.features.S)[1:], found.square, thin)
            elif carrier.module or carrier.way == "bias":
                fixed += math.prod(shape)
        entry = found.entry
        del found  # while the next one is made
        if progress is not None:
            progress(clock.after(entry))
    if not layers:
        raise InputError("No weight of a linear layer changes, so an adapter would hold nothing. Pick a fine-tune.")
    full = max(len(kept) for kept, _, _ in layers.values())
    ranks = [2**power for power in range(full.bit_length()) if 2**power < full] + [full]
    total = math.fsum(square for _, square, _ in layers.values())
    itemsize = adapter_dtype(plan).itemsize
    return tuple(_cost(rank, layers, total, total / math.fsum(squares), itemsize, fixed) for rank in ranks)


def _cost(
    rank: int, layers: dict[str, tuple[Tensor, float, int]], total: float, carried: float, itemsize: int, fixed: int
) -> RankCost:
    kept = {name: float(held[min(rank, len(held)) - 1]) for name, (held, _, _) in layers.items()}
    energy = math.fsum(kept[name] * square for name, (_, square, _) in layers.items()) / total
    elements = fixed + sum(min(rank, len(held)) * thin for held, _, thin in layers.values())
    worst = min(kept, key=lambda name: kept[name])
    return RankCost(rank, min(energy, 1.0), kept[worst], worst, elements * itemsize, carried)
