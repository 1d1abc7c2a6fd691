"""Which checkpoints may be fine-tuned from a base, by their headers alone: a hint for the list, not a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sftm_app.errors import SFTMError
from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint

# A task may lack a pooling layer or have another vocabulary; another architecture shares next to nothing.
LEAST_SHARED = 0.5
_Shape = tuple[int, ...]


def fitting(base: Path, candidates: Sequence[Path]) -> list[Path]:
    """Those of the candidates that may be fine-tuned from the base. All of them if the base cannot be opened.

    What cannot be opened is listed too: loading it says why.
    """
    try:
        opened = open_checkpoint(base)
    except SFTMError:
        return list(candidates)
    return [path for path in candidates if path != base and _may_fit(opened, path)]


def _may_fit(base: Checkpoint, path: Path) -> bool:
    try:
        task = open_checkpoint(path)
    except SFTMError:
        return True
    ours = _shapes(base)
    if task.adapter is not None:
        changed = _changed_shapes(task)
        return not changed or any(shape in ours or shape[::-1] in ours for shape in changed)
    kinds = {one.config["model_type"] for one in (base, task) if "model_type" in one.config}
    shared = (ours & _shapes(task)).total()
    return len(kinds) < 2 and shared >= LEAST_SHARED * ours.total()


def _shapes(checkpoint: Checkpoint) -> Counter[_Shape]:
    return Counter(info.shape for info in checkpoint.tensors.values() if len(info.shape) > 1)


def _changed_shapes(adapter: Checkpoint) -> set[_Shape]:
    """The shapes of the weights that the pairs of an adapter change."""
    first = {name.replace("lora_A", "lora_B"): info.shape for name, info in adapter.tensors.items() if "lora_A" in name}
    shapes = {name: info.shape for name, info in adapter.tensors.items()}
    pairs = [(shapes[name], A) for name, A in first.items() if name in shapes]
    return {(B[0], *A[1:]) for B, A in pairs if len(B) > 1 and len(A) > 1}
