"""Run a plan into one LoRA adapter that PEFT loads over the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sftm_app.engine.records import TensorRecord
from sftm_app.errors import InputError, NumericalError
from sftm_app.linalg.factors import Factors, cumulative_energy
from sftm_app.linalg.low_rank import LowRank, dense
from sftm_app.output.adapter.changes import TensorDelta, n_features, tensor_deltas
from sftm_app.output.adapter.files import adapter_dtype, write_adapter_config
from sftm_app.output.adapter.layout import Carrier, is_table, lay_out, peft_name
from sftm_app.output.meter import MemoryMeter
from sftm_app.output.progress import Clock, Progress
from sftm_app.output.report import Report, hashing, make_report
from sftm_app.output.side_files import write_documents, write_heads
from sftm_app.planning.plan import COMPUTE_DTYPE, Plan, PlanEntry
from sftm_app.session import Session
from sftm_app.weights.file_names import ADAPTER_WEIGHTS_NAME
from sftm_app.weights.partial import output_folder
from sftm_app.weights.reader import open_reader
from sftm_app.weights.writer import write_tensors

_MAX_NAMED = 5


@dataclass
class _Gathered:
    """What the run has made so far.

    ranks: path of a module -> the rank of its pair. modules: those saved whole. kept, total: squares of what the pairs
    hold and of what they stand for. worst: the share kept of the layer that lost most. left_out: name -> square.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    changes: dict[str, Tensor] = field(default_factory=dict)
    records: list[TensorRecord] = field(default_factory=list)
    kept: float = 0.0
    total: float = 0.0
    worst: tuple[float, str] = (1.0, "")
    left_out: dict[str, float] = field(default_factory=dict)
    tied: list[str] = field(default_factory=list)
    elsewhere: float = 0.0


def save_adapter(plan: Plan, session: Session, output: Path, meter: MemoryMeter) -> Generator[Progress, None, Report]:
    """Merge into the adapter folder `output`, yielding after each tensor and before the last step; see save().

    Changes of linear layers become factors B = U sqrt(S), A = sqrt(S) V^T of scaling 1, cut to the recipe's rank and
    energy; low-rank changes of embedding tables too. Norms, and heads of classifiers, are saved whole, biases as they
    are. What an adapter cannot carry is named in the report's warnings with its share of the whole change.

    Raises
        InputError: no layer's weight changes, so there is nothing to put into an adapter.
        OutputError, ResourceError: see output_folder; and what run_deltas() raises.
    """
    clock = Clock(plan)
    carriers = lay_out(plan)
    made = _Gathered()
    with output_folder(output) as partial, hashing(plan, session) as hashed:
        write_heads(plan, partial)
        for found in tensor_deltas(plan, session):
            _take(plan, found, carriers[found.entry.name], made)
            entry = found.entry
            del found
            meter.look()
            yield clock.after(entry)
        if not made.ranks:
            raise InputError(
                "No weight of a linear layer changes, so there is nothing to put into an adapter. Save a full model."
            )
        yield clock.last()
        _add_whole(plan, carriers, made)
        write_tensors(partial / ADAPTER_WEIGHTS_NAME, made.tensors, {})
        write_adapter_config(plan, partial, made.ranks, tuple(made.modules), bool(made.biases))
        report = make_report(plan, session, made.records, clock.elapsed_s, meter.look(), hashed)
        n_bytes = sum(tensor.nbytes for tensor in made.tensors.values())
        said = (*report.warnings, *_losses(made))
        report = dataclasses.replace(report, warnings=said, output_bytes=n_bytes)
        write_documents(plan, report, partial)
    return report


def _take(plan: Plan, found: TensorDelta, carrier: Carrier, made: _Gathered) -> None:
    """Put one tensor's change where its carrier says."""
    records = list(found.records)
    as_pair = carrier.way == "pair" or (carrier.way == "table" and isinstance(found.delta, LowRank))
    if found.square == 0.0:
        pass
    elif as_pair and found.delta is not None:
        whole = found.features
        kept = n_features(whole, plan.recipe.output.rank, plan.recipe.output.energy)
        share = float(cumulative_energy(whole.S)[kept])
        made.kept += share * found.square
        made.total += found.square
        made.worst = min(made.worst, (share, found.entry.name))
        made.tensors |= _pair(plan, found.entry, carrier, whole.cut(kept))
        made.tied += [found.entry.name] if len(carrier.paths) > 1 else []
        made.ranks |= dict.fromkeys((path.rpartition(".")[0] for path in carrier.paths), kept)
        figures = dataclasses.replace(records[-1].figures, adapter_rank=kept, energy_kept=share)
        records[-1] = dataclasses.replace(records[-1], figures=figures)
    elif (carrier.module or carrier.way == "bias") and found.delta is not None:
        made.elsewhere += found.square
        made.changes[found.entry.name] = dense(found.delta)
        made.modules |= {carrier.module: None} if carrier.module else {}
    else:
        made.left_out[found.entry.name] = found.square
        figures = dataclasses.replace(records[-1].figures, left_out=True)
        records[-1] = dataclasses.replace(records[-1], figures=figures)
    made.records.extend(records)


def _pair(plan: Plan, entry: PlanEntry, carrier: Carrier, found: Factors) -> dict[str, Tensor]:
    """The factors under PEFT's names, once more for each name that is tied to the weight."""
    root = found.S.sqrt()
    dtype = adapter_dtype(plan)
    B = _fit(entry, (found.U * root).to(dtype))
    A = _fit(entry, (root[:, None] * found.Vh).to(dtype))
    tensors: dict[str, Tensor] = {}
    for path in carrier.paths:
        module = peft_name(path.rpartition(".")[0])
        if carrier.way == "table" and is_table(path):
            tensors |= {f"{module}.lora_embedding_A": A.clone(), f"{module}.lora_embedding_B": B.clone()}
        elif carrier.way == "table":
            # The output layer multiplies with the table, which a pair there sees transposed.
            tensors |= {f"{module}.lora_A.weight": B.T.contiguous(), f"{module}.lora_B.weight": A.T.contiguous()}
        else:
            kernel = entry.output.shape[2:]
            shapes = (
                (found.rank, *entry.output.shape[1:]) if kernel else A.shape,
                (*B.shape, *[1] * len(kernel)),
            )
            tensors |= {
                f"{module}.lora_A.weight": A.reshape(shapes[0]),
                f"{module}.lora_B.weight": B.reshape(shapes[1]),
            }
    return tensors


def _fit(entry: PlanEntry, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise NumericalError(
            f"{entry.name!r}: factors of the adapter do not fit {str(tensor.dtype).removeprefix('torch.')}. "
            "Choose float32 or bfloat16 as output dtype, or a lower scaling."
        )
    return tensor.contiguous()


def _add_whole(plan: Plan, carriers: dict[str, Carrier], made: _Gathered) -> None:
    """Biases that changed, and all of every module that is saved whole: the base's values with the changes added."""
    with open_reader(plan.preflight.base) as base:
        for entry in plan.entries:
            carrier = carriers[entry.name]
            if carrier.module and carrier.module in made.modules:
                name = peft_name(carrier.paths[0])
            elif carrier.way == "bias" and entry.name in made.changes:
                wrapped = carrier.path in made.ranks
                name = peft_name(f"{carrier.path}.base_layer.bias" if wrapped else carrier.paths[0])
                made.biases[name] = made.changes[entry.name]
            else:
                continue
            if entry.name in made.changes:
                value = base.finite(entry.name, COMPUTE_DTYPE)
                change = made.changes[entry.name]
                value += _as_stored(entry, change).to(value)
                made.tensors[name] = _fit(entry, value.to(entry.output.dtype))
            else:
                made.tensors[name] = base(entry.name).to(entry.output.dtype)


def _as_stored(entry: PlanEntry, change: Tensor) -> Tensor:
    """A linear map (m, n) in the tensor's own shape."""
    transposed = bool(entry.parts) and entry.parts[0].transposed
    return (change.T if transposed else change).reshape(entry.output.shape)


def _losses(made: _Gathered) -> Iterator[str]:
    """What the adapter keeps of the merged change, and what it cannot carry, in sentences."""
    share = made.kept / made.total
    highest = max(made.ranks.values())
    if made.tied:
        yield (
            f"{', '.join(made.tied)} is tied to other weights, so its change stands in the adapter once for each. "
            "Use the adapter as it is: PEFT's merge_and_unload would add the change twice. A full model has it once."
        )
    if share < 1 - 1e-9:
        worst, name = made.worst
        yield (
            f"Rank {highest} keeps {share:.1%} of the change of the layers (squared); the worst layer, {name}, keeps "
            f"{worst:.1%}. Choose a higher rank or energy for more."
        )
    if made.left_out:
        whole = made.total + made.elsewhere + sum(made.left_out.values())
        most = sorted(made.left_out, key=lambda name: -made.left_out[name])
        named = ", ".join(f"{name} ({made.left_out[name] / whole:.1%})" for name in most[:_MAX_NAMED])
        more = f" and {len(most) - _MAX_NAMED} more" if len(most) > _MAX_NAMED else ""
        yield (
            f"An adapter cannot carry the changes of {named}{more}: {sum(made.left_out.values()) / whole:.1%} of the "
            "whole change (squared) is not in it. Save a full model to have them."
        )
