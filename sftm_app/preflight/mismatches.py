"""Sentences on how a task does not fit the base. None of them names the task: the caller puts its name in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_NAMED = 5


@dataclass(frozen=True)
class Reshaped:
    """A tensor whose shape differs between the base (`ours`) and the task (`theirs`)."""

    name: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def reshaped_problems(reshaped: Sequence[Reshaped]) -> list[str]:
    """One sentence for each of the first tensors, and one for all of them."""
    if not reshaped:
        return []
    if empty := [tensor for tensor in reshaped if 0 in tensor.theirs and 0 not in tensor.ours]:
        return [
            f"{len(empty)} of its tensors hold nothing, such as {empty[0].name!r} of shape {list(empty[0].theirs)}: "
            "ZeRO-3 left them empty, because each process held a part of them. Gather the weights first: run "
            "`zero_to_fp32.py` in the folder with DeepSpeed's own checkpoint, or train with "
            "`stage3_gather_16bit_weights_on_model_save`."
        ]
    problems = [
        f"tensor {tensor.name!r} has shape {list(tensor.theirs)}, in the base it is {list(tensor.ours)}"
        f"{', which is its transpose' if tensor.theirs == tensor.ours[::-1] else ''}."
        for tensor in reshaped[:MAX_NAMED]
    ]
    more = f"{len(reshaped) - MAX_NAMED} more tensors have another shape. " if len(reshaped) > MAX_NAMED else ""
    return [*problems, f"{more}It was not fine-tuned from this base, or its size was changed."]


def name_problems(retyped: Sequence[str], missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    """Sentences on tensors of another type, tensors that only the base has, and tensors that only the task has."""
    problems = []
    if retyped:
        problems.append(
            f"{len(retyped)} tensors are integers on one side and floating-point numbers on the other: "
            f"{listing(retyped)}. Quantised checkpoints cannot be merged: use the one before quantisation."
        )
    if missing:
        problems.append(
            f"{len(missing)} tensors of the base are missing from it: {listing(missing)}. "
            "The checkpoint is incomplete, or smaller than the base: download it again, or pick another."
        )
    if unexpected:
        problems.append(
            f"holds {len(unexpected)} tensors that the base lacks: {listing(unexpected)}. "
            "It was not fine-tuned from this base."
        )
    return problems


def tie_problem(name: str, tied_in_base: bool) -> str:
    """A sentence for an output matrix that is tied to the embedding on one side only."""
    sides = ("the base", "the task") if tied_in_base else ("the task", "the base")
    return (
        f"{name!r} is tied to the embedding in {sides[0]} and separate in {sides[1]} (`tie_word_embeddings`), so the "
        "merged model could be neither. Save both in the same way, or pick another checkpoint."
    )


def false_tie_notes(false_ties: Mapping[str, str]) -> list[str]:
    """Notes on tensors that the config ties although their values in the files differ."""
    return [
        f"its config ties {name!r} to {other!r}, but they differ in its files, so each is merged separately "
        "(transformers loads them separately too)."
        for name, other in false_ties.items()
    ]


def vocabulary_problems(tasks: Sequence[str], sizes: Sequence[tuple[int, int] | None]) -> list[str]:
    """One sentence for each vocabulary of another size. sizes: the base's and the task's, or None if they agree."""
    return [
        f"The vocabularies differ: the base's has {ours} entries, that of "
        f"{' and '.join(task for task, size in zip(tasks, sizes, strict=True) if size == (ours, theirs))} has "
        f"{theirs}. Only fine-tunes that kept the base's tokenizer can be merged. Take the others out, or give all "
        "models the same vocabulary first (`resize_token_embeddings`)."
        for ours, theirs in sorted({size for size in sizes if size is not None})
    ]


def listing(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
