"""LoRA on parameters that no module of their own owns, such as a stack of experts (PEFT's `target_parameters`).

PEFT keeps one A (experts * rank, in) and one B (out, rank * experts) for a stack, the experts in A one after the other,
those in B interleaved. Wrappers of several parameters of one module are nested: "experts.base_layer.lora_A".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sftm_app.architecture.architecture import Architecture
from sftm_app.weights.adapter_config import AdapterConfig, LoraPair
from sftm_app.weights.checkpoint import Checkpoint

_NESTED = re.compile(r"(\.base_layer)+$")


@dataclass(frozen=True)
class Stack:
    """A parameter in memory that a pair changes: its path, and the number of experts, outputs and inputs."""

    path: str
    n_experts: int
    out: int
    into: int


def find_stacks(
    factors: Mapping[str, Mapping[str, str]], task: Checkpoint, adapter: AdapterConfig, architecture: Architecture
) -> tuple[dict[str, Stack], list[str]]:
    """The parameter that each pair without a module of its own changes.

    Args:
        factors: module path -> the names of A and B, of all pairs of the adapter.
        task, adapter: the adapter.
        architecture: of the base.

    Returns:
        Module path -> its parameter, and problems in sentences.
    """
    if not adapter.on_parameters:
        return {}, []
    prefix = architecture.backbone_prefix
    wanted = {name.rpartition(".")[2] for name in adapter.on_parameters}
    held: dict[str, list[str]] = {}
    for path in architecture.shapes:
        module, _, last = path.rpartition(".")
        if last in wanted:
            held.setdefault(module, []).append(path)
    found: dict[str, Stack] = {}
    problems = []
    for module, pair in factors.items():
        plain = _NESTED.sub("", module)
        paths = next((held[p] for p in (plain, prefix + plain, plain.removeprefix(prefix)) if p in held), [])
        if not paths or len(pair) < 2:
            continue
        A, B = (task.tensors[pair[half]].shape for half in "AB")
        fitting = [stack for path in paths if (stack := _stack(path, A, B, architecture)) is not None]
        if len(fitting) == 1:
            found[module] = fitting[0]
        else:
            why = "fit none" if not fitting else "fit more than one"
            problems.append(f"A {list(A)} and B {list(B)} at {module} {why} of {', '.join(paths)}. Save it again.")
    return found, problems


def pairs_of(
    stack: Stack, factors: Mapping[str, str], task: Checkpoint, adapter: AdapterConfig, architecture: Architecture
) -> dict[str, LoraPair] | str:
    """The pairs of the base's tensors that a stack of experts is stored as, or a sentence on what is wrong."""
    A, B = (task.tensors[factors[half]].shape for half in "AB")
    rank, last = A[0] // stack.n_experts, stack.path
    if rank != adapter.rank_at(last):
        return (
            f"the rank at {last} is {rank}, adapter_config.json says {adapter.rank_at(last)}: alpha / r would be "
            "wrong. Use the config that was saved with these weights."
        )
    size = (torch.Size(A).numel() + torch.Size(B).numel()) // stack.n_experts
    common = LoraPair(factors["A"], factors["B"], rank, adapter.scaling_at(last), size, n_experts=stack.n_experts)
    key = stack.path.removeprefix(architecture.backbone_prefix)
    made = {}
    for name, owner in architecture.owners.items():
        transposed = owner.kind.endswith("_transposed")
        if owner.key == key:
            made[name] = LoraPair(**vars(common) | {"transposed": transposed})
        elif owner.stack is not None and owner.key.startswith(f"{key} "):
            expert, index, count = owner.stack
            each = stack.out // count
            rows = (index * each, (index + 1) * each) if count > 1 else None
            made[name] = LoraPair(**vars(common) | {"transposed": transposed, "expert": expert, "rows": rows})
    return made or f"changes {stack.path}, which the base's files do not hold."


def _stack(path: str, A: tuple[int, ...], B: tuple[int, ...], architecture: Architecture) -> Stack | None:
    """The parameter as a stack, if the factors fit it."""
    shape = architecture.shapes[path]
    if len(shape) not in (2, 3) or len(A) != 2 or len(B) != 2:
        return None
    n_experts, rows, columns = shape if len(shape) == 3 else (1, *shape)
    fits = B[1] == A[0] and A[0] % n_experts == 0
    # The factors say which way round the parameter is stored.
    for out, into in ((rows, columns), (columns, rows)):
        if fits and (B[0], A[1]) == (out, into):
            return Stack(path, n_experts, out, into)
    return None
