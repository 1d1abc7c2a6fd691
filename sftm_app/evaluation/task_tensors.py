"""The tensors of one task's own model."""

from __future__ import annotations

from torch import Tensor

from sftm_app.architecture.roles import Part, assign
from sftm_app.engine.task_matrices import read_pair
from sftm_app.linalg.low_rank import add_to
from sftm_app.planning.plan import COMPUTE_DTYPE
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import TensorReader, open_reader


def individual_tensors(found: Preflight, index: int) -> dict[str, Tensor]:
    """One task's own model: its tensors under the names in its files; for an adapter the base's with its changes.

    Heads of an adapter come under the names in its files.
    """
    task, match = found.tasks[index], found.matches[index]
    with open_reader(task.checkpoint) as read:
        if task.checkpoint.adapter is None:
            return {name: read(name) for name in task.checkpoint.tensors}
        with open_reader(found.base) as base:
            tensors = {name: _held(found, index, name, base, read) for name in found.base.tensors}
        return tensors | {name: read(name) for name in match.heads}


def individual_tensor(found: Preflight, index: int, name: str) -> Tensor:
    """What one task's own model holds for the base's tensor `name`: its own, one with a LoRA change, or the base's."""
    with open_reader(found.base) as base, open_reader(found.tasks[index].checkpoint) as read:
        return _held(found, index, name, base, read)


def _held(found: Preflight, index: int, name: str, base: TensorReader, read: TensorReader) -> Tensor:
    source = found.matches[index].source(name)
    if not isinstance(source, LoraPair):
        return base(name) if source is None else read(source)
    parts = assign(found.base.tensors[name], found.architecture.owners.get(name)).parts
    part = parts[0] if parts else Part(transposed=source.transposed)
    changed = base(name).to(COMPUTE_DTYPE, copy=True)
    add_to(part.of(changed), read_pair(read, source))
    return changed
