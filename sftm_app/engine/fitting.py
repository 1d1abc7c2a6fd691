"""Converts results to the dtype of the output, and refuses values that do not fit it.

What a cast makes of a value that is too large depends on the dtype and on torch: fp16 gives infinity, and torch 2.13
gives float8 the largest value instead. So the values themselves are compared with the largest one, before the cast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import NumericalError


@dataclass(frozen=True)
class Unfit:
    """Values that a dtype cannot hold.

    Attributes:
        count: how many there are.
        largest: the largest absolute value; NaN if one of them is.
    """

    count: int = 0
    largest: float = 0.0


def unfit(tensor: Tensor, dtype: torch.dtype) -> Unfit:
    """Count the values beyond the largest value of `dtype`, and those that are not finite.

    Args:
        tensor: floating-point values of any shape.
        dtype: a floating-point dtype.
    """
    if not tensor.numel():
        return Unfit()
    limit = torch.finfo(dtype).max
    low, high = (float(end) for end in torch.aminmax(tensor))  # needs no copy; NaN if any value is
    if -limit <= low and high <= limit:
        return Unfit()
    fits = tensor.abs() <= limit
    return Unfit(tensor.numel() - int(torch.count_nonzero(fits)), max(abs(low), abs(high)))


def fit(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`, on the tensor's device.

    Raises:
        NumericalError: some values do not fit; says how many, and how large they are.
    """
    refuse_unfit(name, dtype, [unfit(tensor, dtype)])
    return tensor.to(dtype)


def refuse_unfit(name: str, dtype: torch.dtype, found: Iterable[Unfit]) -> None:
    """Raise NumericalError if values of the tensor `name`, counted piece by piece, do not fit `dtype`."""
    bad = [one for one in found if one.count]
    count = sum(one.count for one in bad)
    if any(math.isnan(one.largest) for one in bad):
        raise NumericalError(f"{name!r}: {count} merged values are NaN. Choose another method.")
    if bad:
        raise NumericalError(
            f"{name!r}: {count} merged values do not fit {str(dtype).removeprefix('torch.')} "
            f"(largest {max(one.largest for one in bad):.3g}). Choose float32 or bfloat16 as output dtype, "
            "or a lower scaling."
        )
