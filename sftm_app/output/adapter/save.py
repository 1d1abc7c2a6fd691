"""Merge into one LoRA adapter that PEFT loads over the base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sftm_app.engine.fitting import fit
from sftm_app.engine.records import TensorRecord
from sftm_app.errors import InputError
from sftm_app.linalg.factors import Factors, cumulative_energy, n_kept, rank_for_energy
from sftm_app.linalg.low_rank import dense
from sftm_app.output.adapter.deltas import TensorDelta, tensor_deltas
from sftm_app.output.adapter.layout import Form, Slot, adapter_slots, is_table
from sftm_app.output.adapter.peft_config import adapter_dtype, write_adapter_config
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.progress import Clock, Progress
from sftm_app.output.report import Report, hashing, make_report
from sftm_app.output.side_files import write_documents, write_heads
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.weights.adapter_config import PEFT_PREFIX
from sftm_app.weights.file_names import ADAPTER_WEIGHTS_NAME
from sftm_app.weights.partial import output_folder
from sftm_app.weights.reader import open_reader
from sftm_app.weights.writer import write_tensors

_MAX_NAMED = 5


@dataclass(frozen=True)
class _Kept:
    """What the adapter keeps of one tensor's delta: its energy (squared norm), and the share of it that is kept."""

    name: str
    form: Form
    energy: float
    share: float


@dataclass
class _Adapter:
    """An adapter while it is made.

    Attributes:
        tensors: what is written, by its name in the file.
        ranks: path of a module -> rank of its pair.
        modules: paths of the modules that are saved whole, in order.
        deltas: by the base's name, those of tensors that are saved with the base's values.
        kept: a line for every tensor that changes.
        records: the lines of the report.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    kept: list[_Kept] = field(default_factory=list)
    records: list[TensorRecord] = field(default_factory=list)


def save_adapter(
    plan: Plan, session: Session, output: Path, meter: MemoryMeter, replace: bool = False
) -> Generator[Progress, None, Report]:
    """Merge into the adapter folder `output`, yielding after each tensor and before the last step.

    Deltas of linear layers, and low-rank deltas of embedding tables, become factors B = U sqrt(S), A = sqrt(S) V^T at
    scaling 1, cut to the recipe's rank and energy. Norms and the heads of classifiers are saved whole, biases as they
    are. The report's warnings name what an adapter cannot hold, with its share of the whole delta.

    Args:
        plan, session, output, replace: as for `output.save.save`.
        meter: watches the memory.

    Raises:
        InputError: no linear layer changes, so there is nothing to put into an adapter.
        OutputError, ResourceError: see `output_folder`; and what `run_deltas` raises.
    """
    clock, slots, adapter = Clock(plan), adapter_slots(plan), _Adapter()
    with output_folder(output, replace=replace) as partial, hashing(plan, session) as hashed:
        write_heads(plan, partial)
        for delta in tensor_deltas(plan, session):
            entry = delta.entry
            _add(plan, adapter, delta, slots[entry.name])
            del delta  # so that it is not held while the next one is made
            meter.look()
            yield clock.after(entry)
        if not adapter.ranks:
            raise InputError(
                "No weight of a linear layer changes, so there is nothing to put into an adapter. Save a full model."
            )
        yield clock.last()
        has_biases = _add_values(plan, adapter, slots)
        write_tensors(partial / ADAPTER_WEIGHTS_NAME, adapter.tensors, {})
        write_adapter_config(plan, partial, adapter.ranks, tuple(adapter.modules), has_biases)
        report = make_report(plan, session, adapter.records, clock.elapsed_s, meter.look(), hashed)
        n_bytes = sum(tensor.nbytes for tensor in adapter.tensors.values())
        warnings = (*report.warnings, *_losses(adapter, slots))
        report = dataclasses.replace(report, warnings=warnings, output_bytes=n_bytes)
        write_documents(plan, report, partial)
    return report


def _add(plan: Plan, adapter: _Adapter, delta: TensorDelta, slot: Slot) -> None:
    """Put one tensor's delta where its slot says."""
    adapter.records += delta.records
    if delta.energy == 0.0:
        return
    name, form, share = delta.entry.name, slot.form_of(delta.delta), 1.0
    last = adapter.records[-1]
    figures = last.figures
    if form in (Form.PAIR, Form.TABLE_PAIR):
        features = delta.features
        rank = _adapter_rank(plan, features)
        share = float(cumulative_energy(features.S)[rank])
        adapter.tensors |= _pair(plan, delta.entry, slot, features.leading(rank))
        adapter.ranks |= dict.fromkeys(slot.layers, rank)
        figures = dataclasses.replace(figures, adapter_rank=rank, energy_kept=share)
    elif form is Form.NONE or delta.delta is None:
        share = 0.0
        figures = dataclasses.replace(figures, left_out=True)
    else:
        adapter.deltas[name] = dense(delta.delta)
        adapter.modules |= {slot.module: None} if form is Form.MODULE else {}
    adapter.kept.append(_Kept(name, form, delta.energy, share))
    adapter.records[-1] = dataclasses.replace(last, figures=figures)


def _adapter_rank(plan: Plan, features: Factors) -> int:
    """How many features to keep: at most the recipe's rank, and no more than hold its share of the energy."""
    rank, energy = plan.recipe.output.rank, plan.recipe.output.energy
    kept = min(n_kept(rank, *features.shape), features.rank)
    # Features whose energy is rounding error are not needed, even for all of the energy.
    return kept if energy is None else min(kept, rank_for_energy(features.S, energy * (1 - 1e-12)))


def _pair(plan: Plan, entry: PlanEntry, slot: Slot, features: Factors) -> dict[str, Tensor]:
    """A and B under PEFT's names, once for each parameter that is tied to the weight."""
    root, dtype = features.S.sqrt(), adapter_dtype(plan)
    B = fit(entry.name, features.U * root, dtype).contiguous()
    A = fit(entry.name, root[:, None] * features.Vh, dtype).contiguous()
    kernel = entry.output.shape[2:]
    tensors: dict[str, Tensor] = {}
    for path, layer in zip(slot.paths, slot.layers, strict=True):
        name = PEFT_PREFIX + layer
        if slot.form is Form.TABLE_PAIR and is_table(path):
            tensors |= {f"{name}.lora_embedding_A": A.clone(), f"{name}.lora_embedding_B": B.clone()}
            continue
        first, second = A, B
        if slot.form is Form.TABLE_PAIR:
            # An output layer that shares the table's weight uses it transposed.
            first, second = B.T.contiguous(), A.T.contiguous()
        elif kernel:
            first = A.reshape(features.rank, *entry.output.shape[1:])
            second = B.reshape(*B.shape, *[1] * len(kernel))
        tensors |= {f"{name}.lora_A.weight": first, f"{name}.lora_B.weight": second}
    return tensors


def _add_values(plan: Plan, adapter: _Adapter, slots: Mapping[str, Slot]) -> bool:
    """Add the biases that change, and every tensor of a module that is saved whole: the base's values plus the delta.

    Returns:
        Whether there are such biases.
    """
    has_biases = False
    with open_reader(plan.preflight.base) as read:
        for entry in plan.entries:
            slot, delta = slots[entry.name], adapter.deltas.get(entry.name)
            if slot.module in adapter.modules:
                path = slot.paths[0]
            elif slot.form is Form.BIAS and delta is not None:
                (layer, *_), has_biases = slot.layers, True
                path = f"{layer}.base_layer.bias" if layer in adapter.ranks else slot.paths[0]
            else:
                continue
            name = PEFT_PREFIX + path
            if not entry.output.dtype.is_floating_point:  # a counter or a mask next to trained values
                adapter.tensors[name] = read(entry.name)
                continue
            values = read.finite(entry.name, COMPUTE_DTYPE)
            if delta is not None:
                values += _as_stored(entry, delta).to(values)
            adapter.tensors[name] = fit(entry.name, values, entry.output.dtype).contiguous()
    return has_biases


def _as_stored(entry: PlanEntry, delta: Tensor) -> Tensor:
    """A linear map (m, n) in the tensor's own shape."""
    transposed = bool(entry.parts) and entry.parts[0].transposed
    return (delta.T if transposed else delta).reshape(entry.output.shape)


def _losses(adapter: _Adapter, slots: Mapping[str, Slot]) -> Iterator[str]:
    """What the adapter keeps of the merged delta, and what it cannot hold, in sentences."""
    pairs = [one for one in adapter.kept if one.form in (Form.PAIR, Form.TABLE_PAIR)]
    tied = [one.name for one in pairs if len(slots[one.name].paths) > 1]
    if tied:
        yield (
            f"{', '.join(tied)} is tied to other weights, so the adapter holds its change once for each of them. Use "
            "the adapter as it is: PEFT's merge_and_unload would add the change twice. A full model holds it once."
        )
    share = math.fsum(one.share * one.energy for one in pairs) / math.fsum(one.energy for one in pairs)
    if share < 1 - 1e-9:
        worst = min(pairs, key=lambda one: one.share)
        yield (
            f"Rank {max(adapter.ranks.values())} keeps {share:.1%} of the change of the layers (squared norm). The "
            f"worst layer, {worst.name}, keeps {worst.share:.1%}. Choose a higher rank or energy to keep more."
        )
    lost = sorted((one for one in adapter.kept if one.form is Form.NONE), key=lambda one: -one.energy)
    if lost:
        total = math.fsum(one.energy for one in adapter.kept)
        named = ", ".join(f"{one.name} ({one.energy / total:.1%})" for one in lost[:_MAX_NAMED])
        more = f" and {len(lost) - _MAX_NAMED} more" if len(lost) > _MAX_NAMED else ""
        yield (
            f"An adapter cannot carry the changes of {named}{more}: {math.fsum(one.energy for one in lost) / total:.1%}"
            " of the whole change (squared norm) is missing from it. Save a full model to keep them."
        )
