"""What kind of parameter a module holds. The kind decides the parameter's role."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from sftm_app.architecture.fused import Fused

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Names of matrices that a module of its own kind multiplies by, such as XLNet's q, k, v and o.
_HELD_MATRIX = re.compile(r"(?:^|_)(?:weight|proj|projection|kernel|gate|fn|original1)$|^[qkvor]$")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Owner:
    """The module that owns a parameter, and what the parameter is.

    Attributes:
        module: the module's class name.
        kind: "linear" (stored out x in), "linear_transposed" (in x out, as GPT-2's Conv1D), "convolution", "experts" or
            "experts_transposed" (a stack of such matrices, one per expert), "bias", "embedding", "norm", "buffer" (not
            trained), "bare" (held by a composite module itself, such as a class token), or "copy" (set by the recipe).
        in_backbone: it is not part of a head.
        why: the reason for the kind if it is not the module: a guess, or the recipe.
        key: identifies the parameter in every model of the family, whatever its name in the files. Tied names share it.
        fused: the linear maps in this matrix, if there are several.
        stack: its place in a stack of experts, if the model holds it in one: the expert, which of the maps side by side
            it is, and how many there are.
    """

    module: str
    kind: str
    in_backbone: bool
    why: str = ""
    key: str = ""
    fused: Fused | None = None
    stack: tuple[int, int, int] | None = None


def kind_of(module: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """The kind (see Owner) of the parameter `name`, of this shape, that `module` itself holds."""
    holder = type(module).__name__
    if holder == "Conv1D" or isinstance(module, _TRANSPOSED_CONVOLUTIONS):
        return "linear_transposed"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "convolution"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    # Every family has its own norm class (LlamaRMSNorm, T5LayerNorm, ...); only the word in the name is common.
    if isinstance(module, _NORMS) or "Norm" in holder:
        return "norm"
    if "Expert" in holder or hasattr(module, "is_transposed"):
        return _kind_in_experts(module, name, shape)
    # These multiply by their own parameter instead of holding an nn.Linear.
    multiplies = isinstance(module, nn.RNNBase | nn.MultiheadAttention) or "Router" in holder or "Gat" in holder
    if multiplies and len(shape) == 2:
        return "linear"
    # torch's own modules are known above; what is left of them scales or shifts.
    is_torchs = type(module).__module__.startswith("torch.nn.modules")
    return "bare" if is_torchs else _kind_of_held(holder, name, shape)


def _kind_of_held(holder: str, name: str, shape: tuple[int, ...]) -> str:
    """For a parameter that a composite module holds itself: a matrix only if its name and its shape say so."""
    is_table = "Embed" in holder and "Project" not in holder
    if is_table or not _HELD_MATRIX.search(name) or sum(size > 1 for size in shape) < 2:
        return "bare"
    if len(shape) == 2:
        return "linear"
    # One matrix per head or group comes first in a stack, and there are fewer heads than rows.
    return "experts" if len(shape) == 3 and shape[0] < min(shape[1:]) else "convolution"


def _kind_in_experts(module: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """For a module that stacks the matrices of all experts in one tensor, and their biases in another."""
    if name.endswith("bias"):
        return "bias"
    if len(shape) == 3:
        return "experts_transposed" if experts_are_transposed(module) else "experts"
    return "linear" if len(shape) == 2 else "bare"


def experts_are_transposed(module: nn.Module) -> bool:
    """Whether a module stores its experts' matrices as in x out.

    Most modules have a flag. For the others the shapes tell: what the first stack writes, the second reads.
    """
    flag = getattr(module, "is_transposed", None)
    if flag is not None:
        return bool(flag)
    first, second = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or first.ndim != 3:
        return False
    return first.shape[1] == second.shape[2] and first.shape[2] == 2 * second.shape[1]
