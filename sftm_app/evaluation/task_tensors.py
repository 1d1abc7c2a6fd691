"""The weights of one task's own model: those of a full checkpoint, or the base's with an adapter applied."""

from __future__ import annotations

from torch import Tensor

from sftm_app.architecture.roles import Part, assign
from sftm_app.engine.task_matrices import read_pair
from sftm_app.linalg.low_rank import add_to
from sftm_app.planning.plan import COMPUTE_DTYPE
from sftm_app.preflight.preflight import Preflight
from sftm_app.weights.adapter_config import LoraPair
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.reader import TensorReader, open_reader


def read_all(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by its name in the files."""
    with open_reader(checkpoint) as read:
        return {name: read(name) for name in checkpoint.tensors}


def individual_tensors(found: Preflight, index: int) -> dict[str, Tensor]:
    """Every tensor of one task's own model.

    Args:
        found: the workspace.
        index: the task's position in it.

    Returns:
        For a full checkpoint its tensors, by the names in its files and in its own order of rows. For an adapter those
        of the base with the adapter applied, by the names in the base's files, and the adapter's heads by the names in
        its own.
    """
    task, match = found.tasks[index].checkpoint, found.matches[index]
    if task.adapter is None:
        return read_all(task.with_own_rows)
    with open_reader(found.base) as base, open_reader(task) as read:
        tensors = {name: _task_tensor(found, index, name, base, read) for name in found.base.tensors}
        return tensors | {name: read(name) for name in match.heads}


def individual_tensor(found: Preflight, index: int, name: str) -> Tensor:
    """What one task's own model holds in place of the base's tensor `name`."""
    with open_reader(found.base) as base, open_reader(found.tasks[index].checkpoint) as read:
        return _task_tensor(found, index, name, base, read)


def _task_tensor(found: Preflight, index: int, name: str, base: TensorReader, read: TensorReader) -> Tensor:
    source = found.matches[index].source(name)
    if source is None:
        return base(name)
    if not isinstance(source, LoraPair):
        return read(source)
    # A LoRA pair changes the whole linear map, or all maps of a stack.
    parts = assign(found.base.tensors[name], found.architecture.owners.get(name)).parts
    tensor = base(name).to(COMPUTE_DTYPE, copy=True)
    for part in parts or (Part(transposed=source.transposed),):
        add_to(part.of(tensor), read_pair(read, source, part.expert))
    return tensor
