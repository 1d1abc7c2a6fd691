"""Which rule a parameter gets follows from its role, and its role from the module that owns it (DESIGN section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from sftm_app.checkpoints.architecture import Owner
from sftm_app.checkpoints.header import TensorInfo


class Role(str, Enum):
    """What a parameter is for."""

    MATRIX = "matrix"  # the weight of a linear map
    EMBEDDING = "embedding"  # looked up or added, never multiplied with: tables, positions, class tokens
    BIAS = "bias"
    NORM = "norm"
    BUFFER = "buffer"  # integers and booleans
    FIXED = "fixed"  # no task holds it


@dataclass(frozen=True)
class Assignment:
    """The role of one parameter and the reason in words."""

    role: Role
    why: str
    transposed: bool = False


def assign(info: TensorInfo, owner: Owner | None) -> Assignment:
    """The role of a tensor of the base. `owner` is None when the architecture does not know the name."""
    if not info.is_float:
        return Assignment(Role.BUFFER, "integers are copied from the base")
    if owner is None:
        return Assignment(Role.EMBEDDING, "no module of the architecture owns it, so it is treated like an embedding")
    why = f"owned by {owner.module}"
    if owner.kind == "norm":
        return Assignment(Role.NORM, why)
    if owner.kind in ("linear", "linear_transposed", "convolution"):
        if len(info.shape) >= 2:
            return Assignment(Role.MATRIX, why, transposed=owner.kind == "linear_transposed")
        return Assignment(Role.BIAS, why)
    return Assignment(Role.EMBEDDING, why)


def as_matrix(tensor: Tensor, transposed: bool) -> Tensor:
    """A stored weight as its linear map, out x in. Convolutions (out, in, kh, kw) become out x (in*kh*kw)."""
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix.T if transposed else matrix


def from_matrix(matrix: Tensor, shape: tuple[int, ...], transposed: bool) -> Tensor:
    """The inverse of as_matrix: back to the stored `shape`."""
    return (matrix.T if transposed else matrix).reshape(shape)
