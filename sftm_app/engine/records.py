"""What the engine records about each tensor it merges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorRecord:
    """One tensor: its rule and why, seconds, and the method's figures (see the method's docstring).

    Figures that stand per task belong to `figures["tasks"]` where only some tasks hold the tensor, else to all of them.
    """

    name: str
    role: str
    rule: str
    why: str
    shape: tuple[int, ...]
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
