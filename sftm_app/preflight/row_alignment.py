"""Base and tasks with the rows of their tables in the order of the merged vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.architecture.adapter_names import is_tied, names_in_base, parse_names
from sftm_app.architecture.architecture import Architecture
from sftm_app.architecture.known_architectures import ArchitectureCache
from sftm_app.architecture.opening import task_architecture
from sftm_app.architecture.vocabulary_tables import vocabulary_axes, with_vocabulary
from sftm_app.preflight.alignment import align
from sftm_app.preflight.matching import Source
from sftm_app.preflight.vocabularies import MergedVocabulary
from sftm_app.weights.checkpoint import Checkpoint
from sftm_app.weights.row_maps import Blend, RowMap, StoredTable


@dataclass(frozen=True)
class Tables:
    """The tables of one model.

    Attributes:
        whole: name in the model's files -> the name in the base.
        factors: name of a LoRA factor on a table -> the dimension that counts the tokens.
    """

    whole: Mapping[str, str]
    factors: Mapping[str, int]

    def name_of(self, ours: str) -> str | None:
        """The name in the model's files of one of the base's tables."""
        return next((theirs for theirs, name in self.whole.items() if name == ours), None)


def tables_of_task(
    base: Checkpoint, ours: Architecture, axes: Mapping[str, int], task: Checkpoint, architectures: ArchitectureCache
) -> Tables:
    """The tables of a task.

    Args:
        base, ours: the base and its architecture.
        axes: of the base; see `vocabulary_axes`.
        task: the task.
        architectures: asked for the task's architecture.

    Raises:
        CheckpointError: no model can be built from the task's config.
    """
    if task.adapter is not None:
        return _tables_of_adapter(base, ours, axes, task)
    theirs = task_architecture(task, base, ours, architectures)
    found = align(base, ours, task, theirs)
    own = vocabulary_axes(task, theirs, architectures)
    keys = {ours.key_of(name, ""): name for name in axes}
    copies = {name: keys.get(theirs.key_of(name, "")) for name in found.copies}
    pairs = {**{copy: name for copy, name in copies.items() if name}, **{found.names.get(n, ""): n for n in axes}}
    same = {name: ours for name, ours in pairs.items() if own.get(name, -1) == axes[ours]}
    return Tables(_as_wide(same, base, axes, task), {})


def _tables_of_adapter(base: Checkpoint, ours: Architecture, axes: Mapping[str, int], task: Checkpoint) -> Tables:
    names = parse_names(task.tensors)

    def in_base(path: str) -> str | None:
        return next((name for name in names_in_base(path, ours) if name in axes), None)

    paths = sorted(names.whole, key=lambda path: is_tied(path, ours))  # the table itself before its copies
    whole = _as_wide({names.whole[path]: name for path in paths if (name := in_base(path))}, base, axes, task)
    factors = {}
    for module, pair in names.factors.items():
        half, axis = ("A", 1) if module in names.tables else ("B", 0)
        if half in pair and len(task.tensors[pair[half]].shape) == 2 and in_base(f"{module}.weight"):
            factors[pair[half]] = axis
    return Tables(whole, factors)


def _as_wide(tables: Mapping[str, str], base: Checkpoint, axes: Mapping[str, int], task: Checkpoint) -> dict[str, str]:
    """Those of a task's tables whose rows are as long as the base's."""

    def rest(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return shape[:axis] + shape[axis + 1 :]

    return {
        theirs: ours
        for theirs, ours in tables.items()
        if rest(task.tensors[theirs].shape, axes[ours]) == rest(base.tensors[ours].shape, axes[ours])
    }


def table_size(checkpoint: Checkpoint, tables: Tables, axes: Mapping[str, int]) -> int | None:
    """The number of tokens that a model's tables hold; None where it has no table."""
    sizes = [checkpoint.tensors[theirs].shape[axes[ours]] for theirs, ours in tables.whole.items()]
    sizes += [checkpoint.tensors[name].shape[axis] for name, axis in tables.factors.items()]
    return sizes[0] if sizes else None


def align_rows(
    base: Checkpoint,
    tasks: Sequence[Source],
    axes: Mapping[str, int],
    tables: Sequence[Tables],
    merged: MergedVocabulary,
) -> tuple[Checkpoint, list[Checkpoint]]:
    """Base and tasks with their tables in the order of the merged vocabulary.

    Where a task lacks a token, its row is the base's, so it changes nothing there. Where the base lacks one, its row is
    the mean of the tasks' rows, and no task changes it.

    Args:
        base, tasks: as opened.
        axes: of the base; see `vocabulary_axes`.
        tables: of each task.
        merged: the vocabulary.
    """
    index = torch.tensor(merged.rows, dtype=torch.int64)
    lacking = index[0] < 0
    of_base: dict[str, RowMap] = {}
    for name, axis in axes.items():
        own = _within(index[0], base.tensors[name].shape[axis])
        blend = _blend(base, tasks, tables, index, name) if axis == 0 and bool((own < 0).any()) else None
        of_base[name] = RowMap(base.stored(name), own, blend, axis)
    moved = []
    for task, of_task, rows in zip(tasks, tables, index[1:], strict=True):
        checkpoint, known = task.checkpoint, torch.where(lacking, -1, rows)
        maps = {}
        for theirs, ours in of_task.whole.items():
            own = _within(known, checkpoint.tensors[theirs].shape[axes[ours]])
            maps[theirs] = RowMap(checkpoint.stored(theirs), own, of_base[ours], axes[ours])
        for theirs, axis in of_task.factors.items():
            own = _within(known, checkpoint.tensors[theirs].shape[axis])
            maps[theirs] = RowMap(checkpoint.stored(theirs), own, None, axis)
        moved.append(_moved(checkpoint, maps, merged.size))
    return _moved(base, of_base, merged.size), moved


def _moved(checkpoint: Checkpoint, maps: Mapping[str, RowMap], size: int) -> Checkpoint:
    changed = {name: mapped for name, mapped in maps.items() if not _is_identity(mapped)}
    config = with_vocabulary(checkpoint.config, size) if checkpoint.config else checkpoint.config
    return checkpoint.with_rows(changed, config) if changed else checkpoint


def _blend(base: Checkpoint, tasks: Sequence[Source], tables: Sequence[Tables], index: Tensor, name: str) -> Blend:
    """Where the rows that the base lacks come from."""
    table, lacking = base.stored(name), index[0] < 0
    stored: list[StoredTable] = []
    rows: list[Tensor] = []
    weights: list[float] = []
    for task, of_task, own in zip(tasks, tables, index[1:], strict=True):
        if (theirs := of_task.name_of(name)) is not None:
            stored.append(task.checkpoint.stored(theirs))
            rows.append(_within(torch.where(lacking, own, -1), stored[-1].n_rows))
            weights.append(abs(task.weight))
    places = torch.arange(len(lacking))
    spare = torch.where(lacking & ~torch.isin(places, index[0]), places, -1)
    return Blend(tuple(stored), tuple(rows), tuple(weights), table, _within(spare, table.n_rows))


def _within(rows: Tensor, size: int) -> Tensor:
    """The rows that a table of this size has; -1 for the others."""
    return torch.where(rows < size, rows, -1)


def _is_identity(mapped: RowMap) -> bool:
    n = mapped.table.info.shape[mapped.axis]
    return len(mapped.own) == n and bool((mapped.own == torch.arange(n)).all())
