"""Call a method, and check what is cheap to check of its result."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftm_app.errors import MethodError, NumericalError, SFTMError
from sftm_app.linalg.calibration import calibrate
from sftm_app.linalg.failures import is_out_of_memory
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.methods.base import Layer, Merged, Method, SolveFigures
from sftm_app.methods.params import common_of

# Characters of another error's text that are shown.
MAX_ERROR = 300


def call_method(method: Method, layer: Layer, params: Any, shape: Sequence[int], check_values: bool = True) -> Merged:
    """What a method makes of a layer.

    Args:
        method, layer, params: which method to call, and with what.
        shape: of the layer's task matrices, and so of the delta.
        check_values: whether to look for NaN and Inf.

    Raises:
        MethodError: the method failed, or its delta cannot be added to a tensor of this shape.
        NumericalError: the delta holds NaN or Inf.
    """
    try:
        result = method.merge(layer, params)
    except SFTMError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _fault(method, f"failed with {_in_words(error)}") from error
    merged = result if isinstance(result, Merged) else Merged(result)
    if trouble := _trouble(merged, tuple(shape)):
        raise _fault(method, trouble)
    if check_values and not _is_finite(merged.delta):
        raise NumericalError(
            f"{method.title} gave values that are NaN or infinite. Choose another method, or copy this tensor from "
            "the base (`roles` in the recipe)."
        )
    return merged


def calibrated(method: Method, layer: Layer, params: Any, merged: Merged) -> Merged:
    """What a method made of a linear map, with its singular values calibrated if the params say so.

    A task wants its own task matrix as often as its weight says. Where weights are shares of a mean, which say whose
    change counts more and not how large it should be, every task wants its matrix once.

    Args:
        method, layer, params, merged: what was called, with what, and what it returned.

    Raises:
        NumericalError: the delta could not be factorised.
    """
    strength = common_of(params).calibration
    if strength == 0:
        return merged
    wanted = [1.0] * len(layer.weights) if method.weights_are_shares else layer.weights
    return replace(merged, delta=calibrate(merged.delta, layer.task_matrices, wanted, strength))


def refuse_base(method: Method, delta: Delta, base: Tensor, version: int) -> None:
    """Refuse a method that changed the base's weight in place, or returned it as its delta.

    Args:
        method, delta: what was called, and what it returned.
        base: the base's tensor.
        version: torch's count of changes in place, `base._version`, before the call.

    Raises:
        MethodError: the method did either.
    """
    if base._version != version:
        raise _fault(method, "changed the base's weight")
    if isinstance(delta, Tensor) and delta.untyped_storage().data_ptr() == base.untyped_storage().data_ptr():
        raise _fault(method, "returned the base's weight itself instead of a copy")


def _fault(method: Method, what: str) -> MethodError:
    return MethodError(
        f"{method.title} {what}. This is a fault of the method's code: correct it, or choose another method."
    )


def _in_words(error: Exception) -> str:
    """An error, and the line of the method's file that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = frames[min(1, len(frames) - 1)].filename  # the first frame is this file's
    place = [frame for frame in frames if frame.filename == own][-1]
    return f"{type(error).__name__} ({str(error)[:MAX_ERROR]}) in {Path(own).name}, line {place.lineno}"


def _trouble(merged: Merged, shape: tuple[int, ...]) -> str | None:
    """Why a delta cannot be added to a tensor of this shape, or None."""
    delta = merged.delta
    tensors = _tensors(delta)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return f"returned {type(delta).__name__} instead of a tensor or a LowRank"
    if not (merged.solve is None or isinstance(merged.solve, SolveFigures)):
        return f"returned {type(merged.solve).__name__} instead of SolveFigures"
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if isinstance(delta, LowRank):
        fits = len(shapes[0]) == 2 and shapes == [(*shape[:1], delta.rank), (delta.rank, *shape[1:])]
    else:
        fits = shapes == [shape]
    if not fits:
        return f"returned a delta of shape {' x '.join(map(str, shapes))} for a tensor of shape {shape}"
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"returned {' and '.join(names)} instead of one of float32 and float64"
    if not all(map(_is_plain, tensors)):
        return "returned a tensor that is sparse, expanded, without data, or requires a gradient"
    return None


def _tensors(delta: Delta) -> tuple[Tensor, ...]:
    return (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the engine may scale a tensor in place."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.requires_grad:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes


def _is_finite(delta: Delta) -> bool:
    """Whether all values are finite. (The product of two finite factors may still overflow.)"""
    # A sum takes one pass. It is finite unless a value is not, or it overflows.
    return all(bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in _tensors(delta))
