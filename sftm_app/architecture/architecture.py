"""Which module owns each parameter, asked of the architecture itself.

The model is built from its config on the `meta` device, which allocates nothing. The names in files differ from those
in memory: transformers renames, stacks and splits while it loads, and a file may lack the prefix of the backbone. So
its own rules are asked what each name stands for. Code shipped with a checkpoint never runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sftm_app.architecture.fused import Fused, find_fused
from sftm_app.architecture.owners import Owner, kind_of
from sftm_app.errors import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """What a config says about the tensors of its files.

    owners: by the names in the files, in the order in which save_pretrained writes them; a name is absent that the
    model has no place for. backbone_prefix: what a model
    with a head puts before its backbone's names. file_names: name in memory (the model's own state_dict) -> name in
    the files, for every parameter that one file tensor holds; tied names lead to the one that is there. keys: of every
    parameter that the class has. ties: tied names in memory, without the prefix -> the key that stands for all of
    them. vocabulary: the key of the table that holds the vocabulary. submodels: model type -> what the keys of that
    part begin with. apart: names in the files that the config ties, though they differ -> what it ties them to.
    """

    owners: dict[str, Owner]
    backbone_prefix: str
    file_names: dict[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    ties: dict[str, str] = field(default_factory=dict)
    vocabulary: str | None = None
    submodels: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)


def preload() -> None:
    """Import what read_architecture would import at its first call, which takes seconds."""
    import transformers.core_model_loading  # noqa: F401


def read_architecture(
    config: dict[str, Any], names: Iterable[str] = (), apart: frozenset[str] = frozenset()
) -> Architecture:
    """Build the model of a config.json on the meta device and ask it who owns which of the `names` in its files.

    apart: those of the names that are not tied to another, whatever the config says.

    Raises
        CheckpointError: the model type is unknown to the installed transformers, needs code of its own, or is
            quantised.
    """
    model = _build(config)
    parameters: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    modules = dict(model.named_modules())
    places = list(_places(model, names, parameters))
    loose = {place.memory for place in places if place.file in apart}
    ties = {name: first for name, first in _ties(parameters, modules).items() if name not in loose}
    keys = {name: ties.get(name, name).removeprefix(prefix) for name in parameters}
    plain = None if prefix else _plain_keys(model, config)

    owners: dict[str, Owner] = {}
    file_names: dict[str, str] = {}
    for place in _as_written(model, places, parameters):
        first = ties.get(place.memory, place.memory)
        within = place.ignored or (first.startswith(prefix) if plain is None else first in plain)
        key = keys.get(place.memory, place.memory.removeprefix(prefix)) + place.slot
        owners[place.file] = _owner(place, modules, parameters, first, within, key)
        if not place.slot:
            file_names[place.memory] = place.file
    by_key = {keys[memory]: file for memory, file in file_names.items() if memory in keys}
    file_names = {name: by_key[keys[name]] for name in parameters if keys[name] in by_key} | file_names
    table = _vocabulary(model, modules)
    return Architecture(
        owners,
        f"{model.base_model_prefix}." if model.base_model_prefix else "",
        file_names,
        frozenset(keys.values()),
        {name.removeprefix(prefix): keys[name] for name in ties},
        keys[table] if table else None,
        _submodels(model, modules, prefix),
    )


def _as_written(model: Any, places: Iterable[_Place], parameters: Iterable[str]) -> list[_Place]:
    """In the order in which save_pretrained writes, which decides what shares a shard: the model's own, or sorted by
    name where names change between memory and files."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, dot_natural_key

    changes = get_model_conversion_mapping(model, add_legacy=False)
    sorts = any(not isinstance(change, PrefixChange) for change in changes)
    names = sorted(parameters, key=dot_natural_key) if sorts else list(parameters)
    positions = {name: position for position, name in enumerate(names)}
    return sorted(places, key=lambda place: positions.get(place.memory, len(positions)))


def _build(config: dict[str, Any], backbone_only: bool = False) -> Any:
    import transformers

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json names no `model_type`. Pick a folder that `save_pretrained` wrote.")
    if "auto_map" in config:
        raise CheckpointError(
            f"The model type {model_type!r} needs code shipped with the checkpoint (`auto_map`), which is never run. "
            "Only architectures that transformers itself knows can be merged."
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json has a `quantization_config`: the weights are quantised, and differences between them mean "
            "nothing. Use the checkpoint from before the quantisation (if its weights are plain numbers after all, "
            "remove that entry from config.json)."
        )
    try:
        parsed = transformers.AutoConfig.for_model(**config)
    except ValueError:
        raise CheckpointError(
            f"The model type {model_type!r} is not known to transformers {transformers.__version__}. "
            "Update transformers or check config.json."
        ) from None
    except Exception as error:
        raise CheckpointError(f"config.json is not a sound {model_type!r} config: {error}") from None
    model_class = None if backbone_only else _model_class(config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_class(parsed) if model_class else transformers.AutoModel.from_config(parsed)
    except Exception as error:
        raise CheckpointError(f"No {model_type!r} model can be built from config.json: {error}") from None


def _plain_keys(model: Any, config: dict[str, Any]) -> frozenset[str] | None:
    """Names in memory of the plain model's parameters, for a model with a head that marks no part as its backbone, as
    T5 with its language-model head; None where all of it is backbone."""
    import transformers

    kind = type(model.config)
    if kind not in transformers.MODEL_MAPPING or isinstance(model, transformers.MODEL_MAPPING[kind]):
        return None
    return frozenset(_build(config, backbone_only=True).state_dict())


def _model_class(config: dict[str, Any]) -> Any:
    """The class that `architectures` names, if transformers has it; None means the plain backbone."""
    import transformers

    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return None
    found = getattr(transformers, named[0], None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the files goes in memory.

    slot: "" when it is the parameter `memory` itself, else what tells it from the other tensors that are put together
    into it. flipped: it is transposed on the way. fused: what it is cut into on the way. ignored: nowhere, by the
    model's own word.
    """

    file: str
    memory: str
    slot: str = ""
    flipped: bool = False
    fused: tuple[str, ...] = ()
    ignored: bool = False


def _places(model: Any, names: Iterable[str], parameters: Mapping[str, torch.Tensor]) -> Iterator[_Place]:
    """What transformers' own loading makes of each name; names without a place in the model are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    buffers = {name for name, _ in model.named_buffers()} - parameters.keys()
    known = dict.fromkeys((*parameters, *buffers), 0)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    # Some of the rules depend on the names that came before, in this order.
    for name in sorted(names, key=dot_natural_key):
        memory, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if memory not in known and name in known:
            memory, pattern = name, None
        if memory in known and pattern is not None:
            rule = by_pattern[pattern]
            steps = [type(step).__name__ for step in rule.operations]
            whole = len(rule.source_patterns) == 1 and "MergeModulelist" not in steps
            cut = steps == ["Chunk"] and rule.operations[0].dim == 0
            labels = tuple(_last_word(target) for target in rule.target_patterns) if cut else ()
            flipped = _is_flipped(rule.operations)
            numbers = re.findall(r"\d+", name.removeprefix(f"{model.base_model_prefix}."))
            slot = "" if whole and len(rule.target_patterns) == 1 else f" {pattern} {' '.join(numbers)}"
            yield _Place(name, memory, slot, flipped, labels)
        elif memory in known:
            yield _Place(name, memory, ignored=memory in buffers)
        elif any(pattern.search(memory) for pattern in ignored):
            yield _Place(name, memory, ignored=True)


def _is_flipped(steps: Iterable[Any]) -> bool:
    return sum(type(step).__name__ == "Transpose" and not step.check_dims for step in steps) % 2 == 1


def _last_word(pattern: str) -> str:
    """ "mlp.gate_proj.weight" -> "gate"."""
    return pattern.removesuffix(".weight").rpartition(".")[2].removesuffix("_proj")


def _owner(
    place: _Place,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, torch.Tensor],
    memory: str,
    in_backbone: bool,
    key: str,
) -> Owner:
    """The owner of the parameter `memory`, as its tensor stands in the files."""
    if place.ignored:
        return Owner("no module", "buffer", in_backbone, key=key)
    path, _, name = memory.rpartition(".")
    module, shape = modules[path], tuple(parameters[memory].shape)
    kind = kind_of(module, name, shape)
    if place.flipped:
        other, _, transposed = kind.partition("_")
        kind = other if transposed else f"{kind}_transposed"
    fused = None
    if len(shape) > 1 and place.fused:
        fused = Fused(place.fused, (shape[0],) * len(place.fused))
    elif len(shape) > 1 and not place.slot and kind.startswith(("linear", "experts")):
        out = -1 if kind.endswith("transposed") != place.flipped else -2
        parent = modules[path.rpartition(".")[0]] if path else module
        fused = find_fused(memory, parent, module, shape[out])
    return Owner(type(module).__name__, kind, in_backbone, key=key, fused=fused)


def _ties(parameters: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Tied names -> the name that stands for all: an embedding's, rather than that of the head that borrows it."""
    groups: dict[int, list[str]] = {}
    for name, tensor in parameters.items():
        groups.setdefault(id(tensor), []).append(name)
    found: dict[str, str] = {}
    for group in groups.values():
        tables = [name for name in group if isinstance(modules[name.rpartition(".")[0]], nn.Embedding)]
        first = (tables or group)[0]
        found |= {name: first for name in group if name != first}
    return found


def _vocabulary(model: Any, modules: Mapping[str, nn.Module]) -> str | None:
    """The name in memory of the table of the vocabulary, for models that read tokens."""
    text = model.config.get_text_config()
    size = getattr(text, "vocab_size", None)
    tables = (path for path, module in modules.items() if isinstance(module, nn.Embedding))
    return next((f"{path}.weight" for path in tables if modules[path].num_embeddings == size), None)


def _submodels(model: Any, modules: Mapping[str, nn.Module], prefix: str) -> dict[str, str]:
    """Model types of the parts, such as the two towers of CLIP, -> what the keys of each part begin with."""
    found: dict[str, str] = {}
    for path, module in modules.items():
        part = getattr(getattr(module, "config", None), "model_type", None)
        if part and part != model.config.model_type:
            found.setdefault(part, f"{path}.".removeprefix(prefix))
    return found
