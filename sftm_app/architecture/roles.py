"""The role of each parameter, which decides how it is merged. It follows from the module that owns the parameter."""

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
    EMBEDDING = "embedding"  # looked up or added, never multiplied by: tables, positions, class tokens
    BIAS = "bias"
    NORM = "norm"
    BUFFER = "buffer"  # integers, booleans, and masks that no training changes
    FIXED = "fixed"  # copied from the base: no task holds it, or the recipe says so


@dataclass(frozen=True)
class Part:
    """One linear map inside a stored tensor: the whole weight, one expert of a stack, or one of several fused maps.

    Attributes:
        label: what the part is called ("query", "expert 3"); "" for a whole weight.
        expert: the index along the first dimension of a stack.
        rows: the first row of the map (out x in), and the row after its last.
        transposed: the weight is stored as in x out.
    """

    label: str = ""
    expert: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The linear map (m, n), out x in, as a view of the contiguous tensor in its stored shape.

        A convolution (out, in, kh, kw) becomes out x (in*kh*kw). Adding to the view in place changes the tensor.
        """
        stored = tensor if self.expert is None else tensor[self.expert]
        matrix = stored.view(stored.shape[0], math.prod(stored.shape[1:]))
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[slice(*self.rows)]

    def name_in(self, tensor: str) -> str:
        """What this part of a tensor is called: the tensor's name, and the part's label in brackets."""
        return f"{tensor} [{self.label}]" if self.label else tensor

    @property
    def in_slice(self) -> Part:
        """The same part relative to its own expert, as TensorReader reads it."""
        return replace(self, expert=None)

    def shape_in(self, stored: tuple[int, ...]) -> tuple[int, int]:
        """The shape (m, n) of this part, in a tensor of the shape `stored`."""
        m, n = self.of(torch.empty(stored, device="meta")).shape
        return m, n


@dataclass(frozen=True)
class Assignment:
    """The role of one parameter, the reason in words, and for a MATRIX the linear maps in it."""

    role: Role
    why: str
    parts: tuple[Part, ...] = ()


def assign(info: TensorInfo, owner: Owner | None, split_fused: bool = False) -> Assignment:
    """The role of a tensor of the base.

    Args:
        info: the tensor.
        owner: its owner; None if the architecture does not know its name.
        split_fused: merge the maps in one matrix, such as query, key and value, one by one instead of as a whole.
    """
    if not info.is_float:
        return Assignment(Role.BUFFER, "integers are copied from the base")
    if owner is None:
        return Assignment(Role.EMBEDDING, "no module of the architecture owns it, so it is treated like an embedding")
    why = owner.why or f"owned by {owner.module}"
    if owner.kind == "buffer":
        return Assignment(Role.BUFFER, "not a parameter: the model computes it, so it is copied from the base")
    if owner.kind.startswith(("linear", "experts", "convolution")):
        if len(info.shape) < 2:
            return Assignment(Role.BIAS, why)
        parts, note = _parts(info, owner, split_fused)
        return Assignment(Role.MATRIX, why + note, parts)
    others = {"bias": Role.BIAS, "norm": Role.NORM, "copy": Role.FIXED}
    return Assignment(others.get(owner.kind, Role.EMBEDDING), why)


def _parts(info: TensorInfo, owner: Owner, split_fused: bool) -> tuple[tuple[Part, ...], str]:
    """The linear maps in a matrix or a stack of matrices, and a note on them."""
    transposed = owner.kind.endswith("_transposed")
    # A linear layer has two dimensions: three mean a stack.
    stacked = len(info.shape) == 3 and not owner.kind.startswith("convolution")
    experts = range(info.shape[0]) if stacked else (None,)
    note = f"; a stack of {info.shape[0]} matrices" if stacked else ""
    blocks: list[tuple[str, tuple[int, int] | None]] = [("", None)]
    if owner.fused is not None:
        if split_fused and owner.fused.sizes:
            blocks = list(zip(owner.fused.labels, owner.fused.rows, strict=True))
        note += f"; {owner.fused.outcome(split_fused)}"
    parts = tuple(
        Part(" ".join(word for word in (f"expert {index}" if stacked else "", label) if word), index, rows, transposed)
        for index in experts
        for label, rows in blocks
    )
    return parts, note
