"""Comparison of computed values relative to their size: an absolute tolerance may hold on one processor only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-5, scale: float | None = None, what: str = "") -> None:
    """Assert that no difference is larger than `tolerance` times the largest absolute value of `wanted`.

    Args:
        found: a tensor, array, number or sequence of numbers.
        wanted: the same shape, or one number. A tensor has the dtype of `found`, or is a float64 reference.
        tolerance: the default suits float32.
        scale: the size to compare with instead, where `wanted` holds small differences of larger values.
        what: the name of the values in the message.
    """
    one, other = _array(found), _array(wanted)
    assert other.ndim == 0 or one.shape == other.shape, f"{what}: shape {one.shape} instead of {other.shape}"
    if isinstance(found, torch.Tensor) and isinstance(wanted, torch.Tensor):
        assert wanted.dtype in (found.dtype, torch.float64), f"{what}: {found.dtype} instead of {wanted.dtype}"
    size = float(np.abs(other).max(initial=0.0)) if scale is None else scale
    off = float(np.abs(one - other).max(initial=0.0))
    assert off <= tolerance * size, f"{what}: off by {off:.3g}, more than {tolerance:g} times {size:.3g}"


def _array(values: Any) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
