"""Asks the architecture itself which module owns each parameter.

The model is built from its config on the `meta` device, which allocates nothing. Code shipped with a checkpoint never
runs. Importing this module imports transformers, which takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

from sftm_app.architecture.architecture import Architecture, UnknownModelType
from sftm_app.architecture.fused import Fused, find_fused
from sftm_app.architecture.owners import Owner, kind_of
from sftm_app.architecture.settings import flat_settings
from sftm_app.architecture.transformers_internals import (
    LoadedTensor,
    has_head,
    loaded_tensors,
    parse_config,
    saving_order,
)
from sftm_app.errors import CheckpointError


def read_architecture(
    config: dict[str, Any], names: Iterable[str] = (), untied: frozenset[str] = frozenset()
) -> Architecture:
    """Build the model of a config.json and find the owner of each tensor of its files.

    Args:
        config: config.json.
        names: the names in the files.
        untied: those of `names` that are not tied to another, whatever the config says.

    Raises:
        UnknownModelType: the config is not one of the installed transformers. Code shipped with it never runs.
        CheckpointError: the config is not valid, or the weights are quantised.
    """
    model = _build(config)
    parameters: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    modules = dict(model.named_modules())
    found = list(loaded_tensors(model, names, parameters))
    tensors = [tensor for tensor in found if tensor.in_model]
    positions = {name: position for position, name in enumerate(saving_order(model, parameters))}
    tensors.sort(key=lambda tensor: positions.get(tensor.memory, len(positions)))
    separate = {tensor.memory for tensor in tensors if tensor.file in untied}
    ties = {name: first for name, first in _ties(parameters, modules).items() if name not in separate}
    keys = {name: ties.get(name, name).removeprefix(prefix) for name in parameters}
    backbone = None
    if not prefix and has_head(model):  # as T5, which marks no part of a model with a head as its backbone
        backbone = frozenset(_build(config, backbone_only=True).state_dict())

    owners: dict[str, Owner] = {}
    file_names: dict[str, str] = {}
    for tensor in tensors:
        first = ties.get(tensor.memory, tensor.memory)
        in_backbone = first.startswith(prefix) if backbone is None else first in backbone
        key = keys.get(tensor.memory, tensor.memory.removeprefix(prefix)) + tensor.slot
        owners[tensor.file] = _owner(tensor, modules, parameters, first, tensor.ignored or in_backbone, key)
        if not tensor.slot:
            file_names[tensor.memory] = tensor.file
    by_key = {keys[memory]: file for memory, file in file_names.items() if memory in keys}
    vocabulary = _vocabulary(model, modules)
    return Architecture(
        owners,
        f"{model.base_model_prefix}." if model.base_model_prefix else "",
        {name: by_key[keys[name]] for name in parameters if keys[name] in by_key} | file_names,
        frozenset(keys.values()),
        {name.removeprefix(prefix): keys[name] for name in ties},
        keys[vocabulary] if vocabulary else None,
        _submodels(model, modules, prefix),
        unused=tuple(tensor.file for tensor in found if not tensor.in_model),
        shapes={name: tuple(tensor.shape) for name, tensor in parameters.items()},
        settings=flat_settings(model.config.to_dict()),
    )


def _build(config: dict[str, Any], backbone_only: bool = False) -> Any:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnknownModelType("config.json names no `model_type`, so it is not one of transformers")
    if model_type not in transformers.CONFIG_MAPPING:
        code = ", and the code shipped with the checkpoint (`auto_map`) is never run" if "auto_map" in config else ""
        raise UnknownModelType(
            f"The model type {model_type!r} is not known to transformers {transformers.__version__}{code}"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json has a `quantization_config`: the weights are quantised, and differences between quantised "
            "weights are meaningless. Use the checkpoint from before the quantisation. If its weights are plain "
            "numbers after all, remove that entry from config.json."
        )
    try:
        parsed = parse_config(config)
    except Exception as error:
        raise CheckpointError(f"config.json is not a valid {model_type!r} config: {error}") from None
    model_class = None if backbone_only else _model_class(config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model_class(parsed) if model_class else transformers.AutoModel.from_config(parsed)
    except Exception as error:
        raise CheckpointError(f"No {model_type!r} model can be built from config.json: {error}") from None


def _model_class(config: dict[str, Any]) -> Any:
    """The class that `architectures` names; None if transformers lacks it, which means the plain backbone."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return None
    found = getattr(transformers, named[0], None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _owner(
    tensor: LoadedTensor,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, torch.Tensor],
    memory: str,
    in_backbone: bool,
    key: str,
) -> Owner:
    """The owner of the parameter `memory`, and the kind of its tensor as it is stored in the files."""
    if tensor.ignored:
        return Owner("no module", "buffer", in_backbone, key=key)
    path, _, name = memory.rpartition(".")
    module, shape = modules[path], tuple(parameters[memory].shape)
    kind = kind_of(module, name, shape)
    if tensor.flipped:
        other, _, transposed = kind.partition("_")
        kind = other if transposed else f"{kind}_transposed"
    fused = None
    if len(shape) > 1 and tensor.fused:
        fused = Fused(tensor.fused, (shape[0],) * len(tensor.fused))
    elif len(shape) > 1 and not tensor.slot and kind.startswith(("linear", "experts")):
        out = -1 if kind.endswith("transposed") != tensor.flipped else -2
        parent = modules[path.rpartition(".")[0]] if path else module
        fused = find_fused(memory, parent, module, shape[out])
    return Owner(type(module).__name__, kind, in_backbone, key=key, fused=fused, stack=tensor.stack)


def _ties(parameters: Mapping[str, torch.Tensor], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Tied name -> the name that stands for all: an embedding's, rather than that of the head that borrows it."""
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
    """The name in memory of the table that holds the vocabulary, for models that read tokens."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    tables = (path for path, module in modules.items() if isinstance(module, nn.Embedding))
    return next((f"{path}.weight" for path in tables if modules[path].num_embeddings == size), None)


def _submodels(model: Any, modules: Mapping[str, nn.Module], prefix: str) -> dict[str, str]:
    """Model type of each part, such as one of CLIP's two towers -> what the keys of that part begin with."""
    found: dict[str, str] = {}
    for path, module in modules.items():
        part = getattr(getattr(module, "config", None), "model_type", None)
        if part and part != model.config.model_type:
            found.setdefault(part, f"{path}.".removeprefix(prefix))
    return found
