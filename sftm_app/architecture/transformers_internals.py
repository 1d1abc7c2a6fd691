"""The one place of this room that relies on undocumented parts of transformers: its rules for loading and saving.

Names in files differ from names in memory: transformers renames, stacks and splits tensors while it loads, and a file
may lack the prefix of the backbone. A test checks that everything used here is still there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

CHECKED_WITH = "5.24.0"
# Entries of config.json for which transformers would look for code or weights, on the hub too.
_REACHING = frozenset(
    ("auto_map", "custom_pipelines", "trust_remote_code", "use_pretrained_backbone", "use_kernels")
    + ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    + ("experts_implementation", "_experts_implementation", "_experts_implementation_internal")
)
# Last parts of the names of tensors that models compute. Older versions saved them.
_BUFFER = re.compile(r"inv_freq|mask|cached|position_ids|position_index|num_batches|version|^(cos|sin)$")


@dataclass(frozen=True)
class LoadedTensor:
    """Where transformers puts a tensor of the files.

    Attributes:
        file: its name in the files.
        memory: the parameter that it becomes, or becomes a part of.
        slot: "" if it is that whole parameter; otherwise what distinguishes it from the other parts.
        stack: where it lies in a stack of experts that is one parameter: the expert, which of the maps side by side it
            is, and how many there are. None outside stacks.
        flipped: it is transposed.
        fused: labels of the maps that it is split into.
        ignored: the model does not use it.
        in_model: a module of the model, or a buffer's name, says where it belongs. Only ignored tensors lack that.
    """

    file: str
    memory: str
    slot: str = ""
    stack: tuple[int, int, int] | None = None
    flipped: bool = False
    fused: tuple[str, ...] = ()
    ignored: bool = False
    in_model: bool = True


def parse_config(config: Mapping[str, Any]) -> Any:
    """The config object of a config.json whose `model_type` transformers knows. Raises what its class raises.

    What names code or weights elsewhere (see _REACHING) is left out, so that none is ever looked for.
    """
    parsed = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(_readable(config))
    if getattr(parsed, "use_pretrained_backbone", False):  # the default of some classes
        parsed.use_pretrained_backbone = False
    return parsed


def _readable(value: Any) -> Any:
    """A value of config.json as transformers reads it: it writes infinities as {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _readable(item) for key, item in value.items() if key not in _REACHING}
    return [_readable(item) for item in value] if isinstance(value, list) else value


def loaded_tensors(model: Any, names: Iterable[str], parameters: Mapping[str, torch.Tensor]) -> Iterator[LoadedTensor]:
    """Apply transformers' loading rules to the names in the files; names without a place in the model are left out."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    buffers = {name for name, _ in model.named_buffers()} - parameters.keys()
    known = dict.fromkeys((*parameters, *buffers), 0)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    modules = {path for path, _ in model.named_modules()}
    # Some rules depend on the names before, in this order.
    for name in sorted(names, key=dot_natural_key):
        memory, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if memory not in known and name in known:
            memory, pattern = name, None
        if memory in known and pattern is not None:
            rule = by_pattern[pattern]
            steps = [type(step).__name__ for step in rule.operations]
            whole = len(rule.source_patterns) == len(rule.target_patterns) == 1 and "MergeModulelist" not in steps
            numbers = re.findall(r"\d+", name.removeprefix(f"{model.base_model_prefix}."))
            split = steps == ["Chunk"] and rule.operations[0].dim == 0
            flips = [step for step in rule.operations if type(step).__name__ == "Transpose" and not step.check_dims]
            yield LoadedTensor(
                name,
                memory,
                slot="" if whole else f" {pattern} {' '.join(numbers)}",
                stack=_place_in_stack(rule, pattern, steps, name),
                flipped=len(flips) % 2 == 1,
                fused=tuple(map(_label, rule.target_patterns)) if split else (),
            )
        elif memory in known:
            yield LoadedTensor(name, memory, ignored=memory in buffers)
        elif any(pattern.search(memory) for pattern in ignored):
            path, _, last = memory.rpartition(".")
            prefix = f"{model.base_model_prefix}."
            is_inside = not modules.isdisjoint((path, prefix + path, path.removeprefix(prefix)))
            yield LoadedTensor(name, memory, ignored=True, in_model=is_inside or _BUFFER.search(last) is not None)


def _place_in_stack(rule: WeightConverter, pattern: str, steps: list[str], name: str) -> tuple[int, int, int] | None:
    """See `LoadedTensor.stack`: experts are stacked first, then gate and up are put side by side along the rows."""
    sources = list(rule.source_patterns)
    is_stack = steps in (["MergeModulelist"], ["MergeModulelist", "Concatenate"]) and len(rule.target_patterns) == 1
    in_rows = all(step.dim == 1 for step in rule.operations if type(step).__name__ == "Concatenate")
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    if not is_stack or not in_rows or not numbers or pattern not in sources:
        return None
    return int(numbers[-1]), sources.index(pattern), len(sources)


def saving_order(model: Any, parameters: Iterable[str]) -> list[str]:
    """Names in memory in the order in which save_pretrained writes, which decides what shares a shard.

    It is the model's own order, or sorted by name where names change between memory and files.
    """
    changes = get_model_conversion_mapping(model, add_legacy=False)
    is_sorted = any(not isinstance(change, PrefixChange) for change in changes)
    return sorted(parameters, key=dot_natural_key) if is_sorted else list(parameters)


def has_head(model: Any) -> bool:
    """Whether a model is more than the plain model of its config."""
    config = type(model.config)
    return config in transformers.MODEL_MAPPING and not isinstance(model, transformers.MODEL_MAPPING[config])


def _label(pattern: str) -> str:
    """What a target is called: "mlp.gate_proj.weight" -> "gate"."""
    return pattern.removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")
