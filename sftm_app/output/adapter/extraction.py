"""What a fine-tune costs as a LoRA adapter: for each rank, the share of its delta that is kept, and the size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.linalg.factors import cumulative_energy
from sftm_app.output.adapter.deltas import tensor_deltas
from sftm_app.output.adapter.layout import Form, adapter_slots
from sftm_app.output.adapter.peft_config import adapter_dtype
from sftm_app.output.progress import Clock, Progress
from sftm_app.planning.plan import Plan
from sftm_app.session import Session


@dataclass(frozen=True)
class RankCost:
    """An adapter of one rank.

    Attributes:
        rank: features per layer at most.
        energy: the share (0..1) of the layers' energy (squared norm of their deltas) that it keeps.
        worst_energy, worst_layer: the same for the layer that loses most, and its name.
        n_bytes: the size of its tensors.
        carried: the share of the whole delta's energy that lies in layers with a LoRA pair.
    """

    rank: int
    energy: float
    worst_energy: float
    worst_layer: str
    n_bytes: int
    carried: float


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer with a LoRA pair.

    Attributes:
        energy: the squared norm of its delta.
        shares: (r,) the share of it that ranks 1..r keep.
        row_elements: how many elements each rank adds to the adapter.
    """

    energy: float
    shares: Tensor
    row_elements: int

    def kept(self, rank: int) -> float:
        return float(self.shares[min(rank, len(self.shares)) - 1])


def rank_costs(
    plan: Plan, session: Session, progress: Callable[[Progress], None] | None = None
) -> tuple[RankCost, ...]:
    """The cost at ranks 1, 2, 4, ... up to the highest rank of any layer. Writes nothing.

    Args:
        plan: of an adapter.
        session: what this process may use.
        progress: called after each tensor.

    Raises:
        InputError: no linear layer changes; and what `run_deltas` raises.
    """
    clock, slots = Clock(plan), adapter_slots(plan)
    layers: dict[str, _Layer] = {}
    energies: list[float] = []
    whole_elements = 0
    for delta in tensor_deltas(plan, session):
        entry, slot = delta.entry, slots[delta.entry.name]
        energies.append(delta.energy)
        form = slot.form_of(delta.delta) if delta.energy else Form.NONE
        if form in (Form.PAIR, Form.TABLE_PAIR):
            features = delta.features
            row_elements = sum(features.shape) * len(slot.paths)
            layers[entry.name] = _Layer(delta.energy, cumulative_energy(features.S)[1:], row_elements)
        elif form is not Form.NONE:
            whole_elements += math.prod(entry.output.shape)
        del delta  # so that it is not held while the next one is made
        if progress is not None:
            progress(clock.after(entry))
    if not layers:
        raise InputError("No weight of a linear layer changes, so an adapter would be empty. Choose another fine-tune.")
    full = max(len(layer.shares) for layer in layers.values())
    ranks = [2**power for power in range(full.bit_length()) if 2**power < full] + [full]
    carried = math.fsum(layer.energy for layer in layers.values()) / math.fsum(energies)
    itemsize = adapter_dtype(plan).itemsize
    return tuple(_cost(rank, layers, carried, whole_elements, itemsize) for rank in ranks)


def _cost(rank: int, layers: Mapping[str, _Layer], carried: float, whole_elements: int, itemsize: int) -> RankCost:
    total = math.fsum(layer.energy for layer in layers.values())
    kept = math.fsum(layer.kept(rank) * layer.energy for layer in layers.values()) / total
    worst = min(layers, key=lambda name: layers[name].kept(rank))
    elements = sum(min(rank, len(layer.shares)) * layer.row_elements for layer in layers.values()) + whole_elements
    return RankCost(rank, min(kept, 1.0), layers[worst].kept(rank), worst, elements * itemsize, carried)
