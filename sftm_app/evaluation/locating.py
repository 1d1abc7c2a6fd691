"""Find a checkpoint's tensor in a built model, and copy a model without copying its weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sftm_app.evaluation.family import EvaluationModel
from sftm_app.evaluation.tokens import n_shared

Model = TypeVar("Model", bound=EvaluationModel)
# Entries compared before the whole tensor is: other weights of the same shape differ in them.
N_COMPARED = 64


@dataclass(frozen=True, eq=False)
class Place:
    """The parameter of a built model that holds a checkpoint's tensor.

    Attributes:
        module: the module that owns the parameter.
        parameter: the parameter.
        name: its name in the model, such as "a.b.weight".
    """

    module: nn.Module
    parameter: nn.Parameter
    name: str

    @property
    def path(self) -> str:
        """The name of the module in the model."""
        return self.name.rpartition(".")[0]


def locate(model: nn.Module, tensor: Tensor, name: str = "") -> Place | None:
    """Find the parameter that holds the values of a stored tensor.

    Parameters are compared by value, because transformers renames, stacks and splits tensors when it loads them.

    Args:
        model: a built model, in float32.
        tensor: the stored tensor, in any floating-point dtype.
        name: the tensor's name in its files; of several parameters with equal values, the one with the longest common
            suffix counts.

    Returns:
        The place of the parameter; None if no parameter holds these values.
    """
    sampled = torch.linspace(0, max(tensor.numel() - 1, 0), min(N_COMPARED, tensor.numel()), dtype=torch.float64).long()
    sample = tensor.reshape(-1)[sampled].float().cpu()
    found: list[str] = []
    for known, parameter in model.named_parameters():
        if parameter.shape != tensor.shape or not parameter.is_floating_point():
            continue
        values = parameter.detach()
        if torch.equal(values.reshape(-1)[sampled.to(values.device)].float().cpu(), sample) and torch.equal(
            values.float(), tensor.float().to(values.device)
        ):
            found.append(known)
    if not found:
        return None
    best = max(found, key=lambda known: n_shared(known[::-1], name[::-1]))
    return Place(model.get_submodule(best.rpartition(".")[0]), model.get_parameter(best), best)


def share_weights(model: Model, replaced: Mapping[nn.Parameter, nn.Parameter] | None = None) -> Model:
    """Copy a model's modules, but not its weights.

    Hooks on the copy do not affect others who use the model at the same time.

    Args:
        model: the model to copy.
        replaced: parameters of the model, and what stands in their place in the copy, wherever they are used.

    Returns:
        A model with modules of its own that shares every other parameter and buffer with `model`.
    """
    network = model.model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    memo |= {id(old): new for old, new in (replaced or {}).items()}
    own: Any = model
    changed: Model = dataclasses.replace(own, model=copy.deepcopy(network, memo))
    return changed
