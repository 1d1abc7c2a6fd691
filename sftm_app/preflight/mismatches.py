"""The sentences on how a task does not fit the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_NAMED = 5


@dataclass(frozen=True)
class Reshaped:
    """A tensor that the task holds in another shape than the base."""

    name: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def reshaped_problems(task: str, reshaped: Sequence[Reshaped]) -> list[str]:
    """One sentence for each of the first tensors, one for all."""
    if not reshaped:
        return []
    problems = [
        f"{task}: tensor {tensor.name!r} has shape {list(tensor.theirs)}, in the base it is {list(tensor.ours)}"
        f"{', which is its transpose' if tensor.theirs == tensor.ours[::-1] else ''}."
        for tensor in reshaped[:MAX_NAMED]
    ]
    more = f"{len(reshaped) - MAX_NAMED} more tensors have another shape. " if len(reshaped) > MAX_NAMED else ""
    return [*problems, f"{task}: {more}It was not fine-tuned from this base, or its size was changed."]


def name_problems(task: str, retyped: list[str], missing: list[str], unexpected: list[str]) -> list[str]:
    """Tensors of another type, tensors of the base that the task lacks, tensors that only the task has."""
    problems = []
    if retyped:
        problems.append(
            f"{task}: {len(retyped)} tensors are integers on one side and floating-point numbers on the other: "
            f"{listing(retyped)}. Quantised checkpoints cannot be merged: use the one before quantisation."
        )
    if missing:
        problems.append(
            f"{task}: {len(missing)} tensors of the base are missing from it: {listing(missing)}. "
            "The checkpoint is incomplete, or smaller than the base: download it again, or pick another."
        )
    if unexpected:
        problems.append(
            f"{task}: holds {len(unexpected)} tensors that the base lacks: {listing(unexpected)}. "
            "It was not fine-tuned from this base."
        )
    return problems


def untied_problem(task: str, name: str, tied_in_base: bool) -> str:
    """One side ties its output to its embedding, the other keeps a matrix of its own for it."""
    how = "is tied to the embedding in the base and apart in the task"
    other_way = "is tied to the embedding in the task and apart in the base"
    return (
        f"{task}: {name!r} {how if tied_in_base else other_way} (`tie_word_embeddings`), so the merged model could be "
        "neither. Save both in the same way, or pick another checkpoint."
    )


def apart_note(where: str, apart: Mapping[str, str]) -> list[str]:
    """A note on tensors that the config ties though the files hold different values."""
    return [
        f"{where}: its config ties {name!r} to {other!r}, but they differ in its files, so each is taken for itself "
        "(as transformers does when it loads them)."
        for name, other in apart.items()
    ]


def vocabulary_problems(tasks: Sequence[str], sizes: Sequence[tuple[int, int] | None]) -> list[str]:
    """One sentence for each size other than the base's. sizes: the base's and the task's, where they differ."""
    found = sorted({size for size in sizes if size is not None})
    return [
        f"The vocabularies differ: the base's has {ours} entries, that of "
        f"{' and '.join(task for task, size in zip(tasks, sizes, strict=True) if size == (ours, theirs))} has "
        f"{theirs}. Only fine-tunes that kept the base's tokenizer can be merged. Take the others out, or give all "
        "models one vocabulary first (`resize_token_embeddings`)."
        for ours, theirs in found
    ]


def listing(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
