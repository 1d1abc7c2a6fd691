"""Where a built model holds a tensor of a checkpoint, and copies of a model that share its weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sftm_app.evaluation.family import EvaluationModel

Model = TypeVar("Model", bound=EvaluationModel)
# Entries that are compared before a whole tensor is: other weights of the same shape differ in them.
N_COMPARED = 64


@dataclass(frozen=True, eq=False)
class Place:
    """Where a built model holds a tensor of a checkpoint. name: of the parameter in the model, "a.b.weight"."""

    module: nn.Module
    parameter: nn.Parameter
    name: str

    @property
    def path(self) -> str:
        """The name of the module in the model."""
        return self.name.rpartition(".")[0]


def locate(model: nn.Module, tensor: Tensor, name: str = "") -> Place | None:
    """The parameter of a built model that holds the values of a stored tensor; None where none does.

    transformers renames, stacks and splits tensors while it loads, so the values count and not the names. Where several
    parameters hold them, the one whose name ends most like `name`, the tensor's in its files. tensor: in its stored
    shape, of any floating-point dtype; a built model holds it in float32.
    """
    places = torch.linspace(0, max(tensor.numel() - 1, 0), N_COMPARED, dtype=torch.float64).long()
    sample = tensor.reshape(-1)[places].float() if tensor.numel() else tensor.reshape(-1).float()
    whole: Tensor | None = None
    found: list[str] = []
    for known, parameter in model.named_parameters():
        if parameter.shape != tensor.shape or not parameter.is_floating_point():
            continue
        values = parameter.detach()
        if tensor.numel() and not torch.equal(values.reshape(-1)[places.to(values.device)].float().cpu(), sample.cpu()):
            continue
        whole = tensor.float().to(values.device) if whole is None else whole
        if torch.equal(values.float(), whole):
            found.append(known)
    if not found:
        return None
    best = max(found, key=lambda known: _n_alike(known[::-1], name[::-1]))
    path, _, _ = best.rpartition(".")
    return Place(model.get_submodule(path), model.get_parameter(best), best)


def _n_alike(left: str, right: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def twin(model: Model, swapped: Mapping[nn.Parameter, nn.Parameter] | None = None) -> Model:
    """A model of its own modules that shares every parameter and buffer with `model` but for those that are swapped.

    Hooks on it are not seen by whoever uses `model` meanwhile. swapped: parameter of `model` -> the one in its place,
    wherever it is used.
    """
    network = model.model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    memo |= {id(old): new for old, new in (swapped or {}).items()}
    own: Any = model
    changed: Model = dataclasses.replace(own, model=copy.deepcopy(network, memo))
    return changed
