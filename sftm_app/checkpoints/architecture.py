"""Which module owns each parameter, asked of the architecture itself.

The model is built from its config on the `meta` device, which allocates nothing. transformers 5 renames some parameters
in memory, so the names are turned back into those that stand in the files. Code shipped with a checkpoint never runs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sftm_app.errors import CheckpointError


@dataclass(frozen=True)
class Owner:
    """The module that owns a parameter: its class name, one of the kinds below, and whether it is in the backbone.

    kind: "linear" (out x in), "linear_transposed" (GPT-2's Conv1D, in x out), "convolution", "embedding", "norm",
    "bare" (a parameter a composite module holds itself, such as a class token).
    """

    module: str
    kind: str
    in_backbone: bool


@dataclass(frozen=True)
class Architecture:
    """Owners by the names in the files, and the prefix that a model with a head puts before its backbone's names."""

    owners: dict[str, Owner]
    backbone_prefix: str


def preload() -> None:
    """Import what read_architecture would import at its first call, which takes seconds."""
    import transformers.core_model_loading  # noqa: F401


def read_architecture(config: dict[str, Any]) -> Architecture:
    """Build the model of a config.json on the meta device and ask it who owns what.

    Raises
        CheckpointError: the model type is unknown to the installed transformers, or needs code of its own.
    """
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json names no `model_type`. Pick a folder that `save_pretrained` wrote.")
    if "auto_map" in config:
        raise CheckpointError(
            f"The model type {model_type!r} needs code shipped with the checkpoint (`auto_map`), which is never run. "
            "Only architectures that transformers itself knows can be merged."
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
    model_class = _model_class(config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = model_class(parsed) if model_class else transformers.AutoModel.from_config(parsed)
    except Exception as error:
        raise CheckpointError(f"No {model_type!r} model can be built from config.json: {error}") from None

    in_memory = dict(model.state_dict(keep_vars=True))
    in_files = revert_weight_conversion(model, dict(in_memory))
    # The first name of a tied weight counts: the embedding that owns it comes before the head that borrows it.
    memory_names = {id(tensor): name for name, tensor in reversed(in_memory.items())}
    modules = dict(model.named_modules())
    backbone_prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    owners: dict[str, Owner] = {}
    for file_name, tensor in in_files.items():
        memory_name = memory_names.get(id(tensor), file_name)
        module = modules.get(memory_name.rpartition(".")[0], model)
        in_backbone = not backbone_prefix or memory_name.startswith(backbone_prefix)
        owners[file_name] = Owner(type(module).__name__, module_kind(module), in_backbone)
    return Architecture(owners, f"{model.base_model_prefix}." if model.base_model_prefix else "")


def _model_class(config: dict[str, Any]) -> Any:
    """The class that `architectures` names, if transformers has it; None means the plain backbone."""
    import transformers

    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return None
    found = getattr(transformers, named[0], None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def module_kind(module: nn.Module) -> str:
    """The kind of a module, see Owner."""
    name = type(module).__name__
    if name == "Conv1D":
        return "linear_transposed"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if isinstance(module, nn.Embedding):
        return "embedding"
    # Every family writes its own norm class (LlamaRMSNorm, T5LayerNorm, ...): the name is what they have in common.
    return "norm" if "Norm" in name else "bare"
