"""What kind of parameter a module holds: the question that decides a parameter's role (DESIGN section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sftm_app.architecture.fused import Fused

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Owner:
    """The module that owns a parameter, and what the parameter is there.

    module: its class name. kind: "linear" (stored out x in), "linear_transposed" (in x out, as GPT-2's Conv1D),
    "convolution", "experts" and "experts_transposed" (a stack of such matrices, one an expert), "bias", "embedding",
    "norm", "buffer" (nothing that is trained), or "bare" (a parameter a composite module holds itself, such as a class
    token). in_backbone: it is no part of a head. why: what the kind rests on where that is not the module: a guess, or
    the recipe, which may also say "copy". key: names the same parameter in every model of the family, whatever its
    files call it; tied names have one key. fused: the linear maps that one matrix holds, if several.
    """

    module: str
    kind: str
    in_backbone: bool
    why: str = ""
    key: str = ""
    fused: Fused | None = None


def kind_of(module: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """The kind, see Owner, of the parameter called `name` of this shape that `module` holds itself."""
    holder = type(module).__name__
    if holder == "Conv1D" or isinstance(module, _TRANSPOSED_CONVOLUTIONS):
        return "linear_transposed"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    # Every family writes its own norm class (LlamaRMSNorm, T5LayerNorm, ...): the name is what they have in common.
    if isinstance(module, _NORMS) or "Norm" in holder:
        return "norm"
    if "Expert" in holder or hasattr(module, "is_transposed"):
        return _kind_in_experts(module, name, shape)
    # These multiply with a parameter of their own instead of holding an nn.Linear.
    multiplies = isinstance(module, nn.RNNBase | nn.MultiheadAttention) or "Router" in holder or "Gat" in holder
    return "linear" if multiplies and len(shape) == 2 else "bare"


def _kind_in_experts(module: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """A module that holds the matrices of all experts, or their biases, as one tensor each."""
    if name.endswith("bias"):
        return "bias"
    if len(shape) == 3:
        return "experts_transposed" if experts_are_transposed(module) else "experts"
    return "linear" if len(shape) == 2 else "bare"


def experts_are_transposed(module: nn.Module) -> bool:
    """Whether a module stacks its experts' matrices as in x out.

    Most say so themselves. For the others the pair of stacks tells: what the first writes, the second reads.
    """
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    first, second = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or first.ndim != 3:
        return False
    return first.shape[1] == second.shape[2] and first.shape[2] == 2 * second.shape[1]
