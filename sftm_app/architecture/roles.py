"""Which rule a parameter gets follows from its role, and its role from the module that owns it (DESIGN section 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from sftm_app.architecture.owners import Owner
from sftm_app.weights.header import TensorInfo


class Role(str, Enum):
    """What a parameter is for."""

    MATRIX = "matrix"  # the weight of a linear map
    EMBEDDING = "embedding"  # looked up or added, never multiplied with: tables, positions, class tokens
    BIAS = "bias"
    NORM = "norm"
    BUFFER = "buffer"  # integers, booleans, and masks that no training changes
    FIXED = "fixed"  # no task holds it, or a person wants it as it is in the base


@dataclass(frozen=True)
class Part:
    """One linear map inside a stored tensor: the whole weight, one expert of a stack, or one of several maps fused.

    label: "" for a whole weight, else what the part is called ("query", "expert 3"). expert: the index along the first
    dimension of a stack. rows: the first row and the row after the last of the linear map (out x in). transposed: the
    weight is stored as in x out.
    """

    label: str = ""
    expert: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The linear map (m, n), out x in, as a view of a contiguous tensor in its stored shape.

        Convolutions (out, in, kh, kw) become out x (in*kh*kw). Adding to the view in place changes the tensor.
        """
        stored = tensor if self.expert is None else tensor[self.expert]
        matrix = stored.view(stored.shape[0], math.prod(stored.shape[1:]))
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[slice(*self.rows)]

    @property
    def in_slice(self) -> Part:
        """The same part inside its expert alone, as TensorReader reads it."""
        return replace(self, expert=None)

    def shape_in(self, stored: tuple[int, ...]) -> tuple[int, int]:
        """The shape (m, n) of this part of a tensor of the shape `stored`."""
        m, n = self.of(torch.empty(stored, device="meta")).shape
        return m, n


@dataclass(frozen=True)
class Assignment:
    """The role of one parameter and the reason in words; for a MATRIX the linear maps that it holds."""

    role: Role
    why: str
    parts: tuple[Part, ...] = ()


def assign(info: TensorInfo, owner: Owner | None, split_fused: bool = False) -> Assignment:
    """The role of a tensor of the base. `owner` is None when the architecture does not know the name.

    split_fused: a matrix that holds several linear maps, such as query, key and value, is merged one map after the
    other instead of whole.
    """
    if not info.is_float:
        return Assignment(Role.BUFFER, "integers are copied from the base")
    if owner is None:
        return Assignment(Role.EMBEDDING, "no module of the architecture owns it, so it is treated like an embedding")
    why = owner.why or f"owned by {owner.module}"
    if owner.kind == "buffer":
        return Assignment(Role.BUFFER, "no parameter: the model makes its own, so it is copied from the base")
    if owner.kind == "copy":
        return Assignment(Role.FIXED, why)
    if owner.kind == "bias":
        return Assignment(Role.BIAS, why)
    if owner.kind == "norm":
        return Assignment(Role.NORM, why)
    if owner.kind.startswith(("linear", "experts", "convolution")):
        if len(info.shape) >= 2:
            parts, said = _parts(info, owner, split_fused)
            return Assignment(Role.MATRIX, why + said, parts)
        return Assignment(Role.BIAS, why)
    return Assignment(Role.EMBEDDING, why)


def _parts(info: TensorInfo, owner: Owner, split_fused: bool) -> tuple[tuple[Part, ...], str]:
    """The linear maps that a matrix or a stack of matrices holds, and what to say about them."""
    transposed = owner.kind.endswith("_transposed")
    # A linear layer has two dimensions: with three, its matrix stands in a stack.
    stacked = len(info.shape) == 3 and not owner.kind.startswith("convolution")
    experts = range(info.shape[0]) if stacked else (None,)
    said = f"; a stack of {info.shape[0]} matrices" if stacked else ""
    blocks: list[tuple[str, tuple[int, int] | None]] = [("", None)]
    if owner.fused is not None:
        if split_fused and owner.fused.sizes:
            blocks = list(zip(owner.fused.labels, owner.fused.rows, strict=True))
        said += f"; {owner.fused.outcome(split_fused)}"
    parts = tuple(
        Part(" ".join(word for word in (f"expert {index}" if stacked else "", label) if word), index, rows, transposed)
        for index in experts
        for label, rows in blocks
    )
    return parts, said
