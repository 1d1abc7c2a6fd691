"""What an error of a numerical library means, where only its text tells."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU, and inside GPU libraries, torch reports this as a plain RuntimeError."""
    texts = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def has_not_converged(error: RuntimeError, device: torch.device) -> bool:
    """Whether another method may succeed. The type of the error does not always say so on a GPU."""
    return isinstance(error, torch.linalg.LinAlgError) or (  # type: ignore[attr-defined]
        device.type == "cuda" and not is_out_of_memory(error)
    )
