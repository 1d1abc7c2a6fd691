"""What a computation failed of, where libraries say so in words only."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch reports a lack of memory on the CPU, and inside the libraries of a GPU, as a plain RuntimeError."""
    said = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)


def has_not_converged(error: RuntimeError, device: torch.device) -> bool:
    """Whether another method may do better. The libraries of a GPU do not always say so by the type of the error."""
    return isinstance(error, torch.linalg.LinAlgError) or (  # type: ignore[attr-defined]
        device.type == "cuda" and not is_out_of_memory(error)
    )
