"""Quantised weights, recognised by the names and types of tensors, whether or not a config declares them.

Float8 weights with scales are plain numbers in another form: the stored values times the scale of their block. They are
read as such. Packed integers are codes: adding them up means nothing, so they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftm_app.errors import CheckpointError
from sftm_app.weights.header import TensorInfo

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_BLOCK = 128
# What each format adds to the name of a weight, or puts in its place: DeepSeek's and Qwen's block scales,
# compressed-tensors and FBGEMM, ComfyUI.
_SCALES = ("{name}_scale_inv", "{name}_scale", "{module}.scale_weight", "{module}.weight_scale", "{name}.scale")
# Scales of what a layer reads or caches, and markers. They say nothing about weights.
_LEFT_OUT = re.compile(r"(^|[._])(input_scale|input_scale_inv|activation_scale|scale_input|[kqv]_scale|scaled_fp8)$")
# The last part of a packed tensor's name -> what wrote it.
_PACKED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "packed_weight": "packed weights",
    "_blocks": "MXFP4",
    "weight.absmax": "bitsandbytes, 4 bits",
    "weight.quant_map": "bitsandbytes, 4 bits",
    "SCB": "bitsandbytes, 8 bits",
}
# What stands next to an integer weight that is a code.
_NEXT_TO_CODES = ("weight_scale", "weight_zero_point", "scales", "zeros", "qzeros", "weight_scale_inv")


@dataclass(frozen=True)
class Scaling:
    """How a stored float8 tensor becomes numbers.

    Attributes:
        stored: the tensor as it is stored, (..., m, n).
        scale: the tensor of scales.
        scale_file: the file that holds it.
        grid: the shape (leading, rows, columns) that the scales are read in: one value per block.
        block: the number of rows and columns of a block.
    """

    stored: TensorInfo
    scale: TensorInfo
    scale_file: Path
    grid: tuple[int, int, int]
    block: tuple[int, int]

    def apply(self, values: Tensor, scales: Tensor, first_row: int) -> Tensor:
        """The numbers of some rows.

        Args:
            values: (rows, n) stored values, of the rows of all leading entries one after the other.
            scales: the whole tensor of scales.
            first_row: the first of the rows.

        Returns:
            (rows, n) float32.
        """
        m, n = self.stored.shape[-2:]
        rows = torch.arange(first_row, first_row + len(values))
        grid = scales.float().reshape(self.grid)
        lead = (rows // m).clamp(max=self.grid[0] - 1)
        factors = grid[lead, (rows % m) // self.block[0]]
        return values.float() * factors.repeat_interleave(self.block[1], 1)[:, :n]


@dataclass(frozen=True)
class Dequantised:
    """What is known of a file's quantised tensors.

    Attributes:
        scalings: name of each float8 weight with scales -> how to read it.
        left_out: names of scales, which are not tensors of the model.
    """

    scalings: dict[str, Scaling]
    left_out: frozenset[str]


def find_quantised(path: Path, tensors: Mapping[str, TensorInfo], files: Mapping[str, Path]) -> Dequantised:
    """Recognise quantised tensors.

    Raises:
        CheckpointError: packed integers, or scales that fit no weight; names the format and what to do.
    """
    _refuse_packed(path, tensors)
    scalings: dict[str, Scaling] = {}
    for name, info in tensors.items():
        if info.dtype in _FLOAT8 and len(info.shape) >= 2:
            module = name.rpartition(".")[0]
            candidates = (pattern.format(name=name, module=module) for pattern in _SCALES)
            scale = next((other for other in candidates if other in tensors and other != name), None)
            if scale is not None:
                scalings[name] = _scaling(path, info, tensors[scale], files[scale])
    if not scalings:
        return Dequantised({}, frozenset())
    used = {scaling.scale.name for scaling in scalings.values()}
    return Dequantised(scalings, frozenset(used | {name for name in tensors if _LEFT_OUT.search(name)}))


def read_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that dequantised weights have as far as a merge is concerned: the config's, otherwise bfloat16."""
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or ""), None)
    known = (torch.float16, torch.bfloat16, torch.float32)
    return found if isinstance(found, torch.dtype) and found in known else torch.bfloat16


def _scaling(path: Path, info: TensorInfo, scale: TensorInfo, file: Path) -> Scaling:
    m, n = info.shape[-2:]
    n_lead = torch.Size(info.shape[:-2]).numel()
    shape, size = scale.shape, torch.Size(scale.shape).numel()
    found: tuple[tuple[int, int, int], tuple[int, int]] | None = None
    if size == 1:
        found = (1, 1, 1), (m, n)
    elif len(info.shape) > 2 and size == n_lead:
        found = (n_lead, 1, 1), (m, n)
    elif size == n_lead * m and shape[-1] in (1, m):
        found = (n_lead, m, 1), (1, n)
    elif len(shape) == len(info.shape) and shape[:-2] == info.shape[:-2]:
        block = _block(m, shape[-2]), _block(n, shape[-1])
        found = ((n_lead, shape[-2], shape[-1]), block) if all(block) else None
    if found is None or not scale.is_float:
        raise CheckpointError(
            f"{path}: the scales {scale.name!r} have shape {list(shape)}, which fits no blocks of {info.name!r} "
            f"{list(info.shape)}. Use the checkpoint from before the quantisation."
        )
    return Scaling(info, scale, file, *found)


def _block(size: int, count: int) -> int:
    """The size of a block, where `count` blocks cover `size`; 0 if it cannot be told."""
    if -(-size // _BLOCK) == count:
        return _BLOCK
    return size // count if count and size % count == 0 else 0


def _refuse_packed(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        found = next((what for end, what in _PACKED.items() if name.endswith(end)), None)
        if found == "MXFP4" and name.removesuffix("_blocks") + "_scales" not in tensors:
            found = None
        if found is None and not info.is_float and len(info.shape) >= 2 and name.endswith("weight"):
            module = name.removesuffix("weight")
            found = "integer codes" if any(module + other in tensors for other in _NEXT_TO_CODES) else None
        if found and (not info.is_float or name.endswith(("absmax", "SCB"))):
            raise CheckpointError(
                f"{path}: its weights are quantised to packed integers ({found}; {name!r} has shape "
                f"{list(info.shape)}), and sums of such codes mean nothing. Use the checkpoint from before the "
                "quantisation, or dequantise it first (load it with transformers, `model.dequantize()`, and save it)."
            )
