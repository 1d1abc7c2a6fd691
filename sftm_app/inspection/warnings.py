"""What deserves a look in one layer, in plain words with the numbers behind them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from sftm_app.inspection.layer import LayerDetail
from sftm_app.inspection.reasons import opposed, undetermined, word_list
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.factors import Factors, cumulative_energy
from sftm_app.linalg.system import block
from sftm_app.methods import get_method

# A task matrix this much smaller than the others' median, or than the base's weight, plays no part in a merge.
BARELY_NEXT_TO_OTHERS = 0.1
BARELY_AT_ALL = 1e-4
# A task this many times larger than the next has nearly all of the energy (90 %), and so the merge.
DOMINATES = 3.0
# Two features count as the same direction if their entry of A is this large: cosines of 0.95 on both sides. With less
# than 5 % of its task's energy, a feature is too weak for its loss to matter.
SAME_FEATURE = 0.9
ENERGY_OF_NOTE = 0.05
# Tasks with this overlap have the same features; random tasks of one rank stay far below.
SAME_TASK = 0.8
# A matrix of noise needs half of all features for 90 % of its energy.
FULL_RANK = 0.5
# A rank that drops more than this share of the energy changes the task's readout by a third (sqrt 0.1).
ENERGY_LOST = 0.1
# A merge that does worse than the plain average by clearly more than rounding, and enough to matter.
WORSE_THAN_AVERAGE = 1.25
ERROR_OF_NOTE = 0.1


@dataclass(frozen=True)
class LayerWarning:
    """One thing to look at.

    Attributes:
        kind: a word for scripts.
        sentence: for people.
        view: where its numbers are shown: "spectra", "overlap", "feature" or "what_if".
        tasks: positions among the layer's members.
        feature: of the first of these tasks, counted from 0.
        informational: worth knowing, but no reason to change anything.
    """

    kind: str
    sentence: str
    view: str
    tasks: tuple[int, ...]
    feature: int | None = None
    informational: bool = False


def layer_warnings(
    what_if: WhatIf, detail: LayerDetail, prediction: Prediction, task_names: Sequence[str]
) -> tuple[LayerWarning, ...]:
    """Find everything of note in one layer under one merge.

    Args:
        what_if, detail: the layer.
        prediction: the merge.
        task_names: of the whole workspace.

    Returns:
        Warnings, informational ones last.
    """
    names = [spectrum.task for spectrum in detail.spectra]
    found = [
        *_sizes(what_if, names),
        *_shared_features(what_if, detail, names),
        *_solution(prediction, names),
        *_errors(what_if, prediction, names),
        *_ranks(what_if, detail, prediction, names),
        *_clusters(what_if, detail, names),
        *_holders(what_if, task_names),
    ]
    return tuple(sorted(found, key=lambda warning: warning.informational))


def _sizes(what_if: WhatIf, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Tasks that changed the layer hardly or not at all, and one that changed it far more than the rest."""
    base = what_if.made.base_norm
    sizes = [float(torch.linalg.vector_norm(f.S)) for f in what_if.made.factors]
    unchanged = [index for index, size in enumerate(sizes) if size == 0.0]
    if unchanged:
        # It is no surprise that a layer was frozen for all tasks.
        all_tasks = len(unchanged) == len(sizes)
        who = "None of the tasks changed" if all_tasks else f"{_few([names[i] for i in unchanged])} did not change"
        yield LayerWarning("unchanged", f"{who} this layer.", "spectra", tuple(unchanged), None, all_tasks)
    barely = list(unchanged)
    for index, size in enumerate(sizes):
        others = sizes[:index] + sizes[index + 1 :]
        usual = statistics.median(others) if others else 0.0
        if size == 0.0 or size >= max(BARELY_NEXT_TO_OTHERS * usual, BARELY_AT_ALL * base):
            continue
        barely.append(index)
        share = f"{size / base:.2g} of the base's weight" if base else f"{size:.2g}"
        compared = f", {size / usual:.2g} times the median of the other tasks" if usual else ""
        sentence = f"{names[index]} barely changed this layer: the norm of its change is {share}{compared}."
        yield LayerWarning("barely_changed", sentence, "spectra", (index,))
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    if len(order) > 1 and order[1] not in barely and sizes[order[0]] >= DOMINATES * sizes[order[1]]:
        first, second = order[:2]
        times = sizes[first] / sizes[second]
        sentence = (
            f"{names[first]} changed this layer {times:.1f} times as much as {names[second]}, the next task, so it "
            "dominates the merged layer."
        )
        yield LayerWarning("dominates", sentence, "spectra", (first,))


def _shared_features(what_if: WhatIf, detail: LayerDetail, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Pairs of tasks whose strong features, or all of them, have the same or opposite directions."""
    for i, j in itertools.combinations(range(len(names)), 2):
        yield from _strong_features(what_if, names, i, j)
        if float(detail.both[i, j]) >= SAME_TASK:
            sentence = (
                f"{names[i]} and {names[j]} have almost the same features here (overlap {detail.both[i, j]:.2f})."
            )
            yield LayerWarning("same_task", sentence, "overlap", (i, j), informational=True)


def _strong_features(what_if: WhatIf, names: Sequence[str], first: int, second: int) -> Iterator[LayerWarning]:
    """Among the strong features of two tasks, the pair with most energy that agrees, and the one that opposes."""
    one, other = (_strong(what_if.made.factors[index]) for index in (first, second))
    A = block(one, other)
    if not A.numel():
        return
    energy = torch.outer(one.S, other.S)
    for kind, signed in (("opposite", -A), ("same", A)):
        if float(signed.max()) < SAME_FEATURE:
            continue
        best = int((energy * (signed >= SAME_FEATURE)).argmax())
        at, there = divmod(best, other.rank)
        sentence = (
            f"{names[first]}'s feature {at + 1} and {names[second]}'s feature {there + 1} ({float(one.S[at]):.0%} and "
            f"{float(other.S[there]):.0%} of their energy) have almost the same directions"
        )
        if kind == "opposite":
            sentence += f" with opposite sign (A = {float(A[at, there]):.2f}), so one of them will lose."
        else:
            sentence += f" (A = {float(A[at, there]):.2f}), so a plain sum counts them twice."
        yield LayerWarning(kind, sentence, "feature", (first, second), at, informational=kind == "same")


def _strong(factors: Factors) -> Factors:
    """The leading features that deserve a warning, with shares of energy in place of gains."""
    shares = cumulative_energy(factors.S).diff().to(factors.S)
    strong = factors.leading(int((shares >= ENERGY_OF_NOTE).sum()))
    return replace(strong, S=shares[: strong.rank])


def _solution(prediction: Prediction, names: Sequence[str]) -> Iterator[LayerWarning]:
    """What the superposition could not do."""
    for conflict in prediction.conflicts:
        sentence = opposed(names[conflict.first], names[conflict.second], conflict.cosine)
        yield LayerWarning("conflict", sentence, "overlap", (conflict.first, conflict.second))
    if prediction.n_dropped:
        sentence = undetermined(prediction.n_dropped)
        yield LayerWarning("singular", sentence, "what_if", tuple(range(len(names))))


def _errors(what_if: WhatIf, prediction: Prediction, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Tasks that the chosen merge keeps less of than the plain average would."""
    if len(names) < 2:
        return
    settings = prediction.settings
    average = what_if.average_errors(settings.weights)
    title = get_method(settings.method).title
    sizes = [float(torch.linalg.vector_norm(f.S)) for f in what_if.made.factors]
    weights = [settings.weights[member] for member in what_if.made.layer.members]
    for index, name in enumerate(names):
        if sizes[index] == 0.0:
            continue
        error, plain = prediction.readout_errors[index], average.readout[index]
        if error > max(ERROR_OF_NOTE, WORSE_THAN_AVERAGE * plain):
            sentence = (
                f"{title} with these settings keeps less of {name}'s features than a plain average: the readout error "
                f"is {error:.2f} instead of {plain:.2f}."
            )
            yield LayerWarning("readout_error", sentence, "what_if", (index,))
        # Tasks that share nothing leak this much into each other when all are kept.
        others = [abs(w) * s for i, (w, s) in enumerate(zip(weights, sizes, strict=True)) if i != index]
        leak = sum(size**2 for size in others) ** 0.5 / sizes[index]
        error, plain = prediction.mapping_errors[index], average.mapping[index]
        if error > max(ERROR_OF_NOTE, WORSE_THAN_AVERAGE * max(plain, leak)):
            sentence = (
                f"On {name}'s inputs, the merge is far from what the task does: the mapping error is {error:.2f}, "
                f"compared with {plain:.2f} for a plain average and {leak:.2f} for tasks that share nothing."
            )
            yield LayerWarning("mapping_error", sentence, "what_if", (index,))


def _ranks(
    what_if: WhatIf, detail: LayerDetail, prediction: Prediction, names: Sequence[str]
) -> Iterator[LayerWarning]:
    """Tasks that lose energy at the chosen rank, or if there are none, those that would at most ranks."""
    full = min(detail.shape)
    lost = [
        (1.0 - float(cumulative_energy(f.S)[rank]), index)
        for index, (f, rank) in enumerate(zip(what_if.made.factors, prediction.ranks, strict=True))
        if rank < f.rank
    ]
    cut = sorted((share, index) for share, index in lost if share > ENERGY_LOST)[::-1]
    if cut:
        worst = [f"{share:.0%} of {names[index]}'s energy (rank {prediction.ranks[index]})" for share, index in cut]
        needed = max(detail.spectra[index].ranks_for_energy[0.90] for _, index in cut)
        sentence = f"The rank drops {_few(worst)}. Keeping 90% of it takes rank {needed} of {full}."
        yield LayerWarning("truncation", sentence, "spectra", tuple(index for _, index in cut))
    needed_by = [
        (spectrum.ranks_for_energy[0.90], index)
        for index, spectrum in enumerate(detail.spectra)
        if spectrum.ranks_for_energy[0.90] > FULL_RANK * full and full > 1
    ]
    if needed_by and not cut:
        tasks = tuple(index for _, index in needed_by)
        who = f"Task {names[tasks[0]]} needs" if len(tasks) == 1 else f"Tasks {_few([names[i] for i in tasks])} need"
        fewest, most = min(needed_by)[0], max(needed_by)[0]
        count = f"{fewest} to {most}" if fewest < most else f"{most}"
        energy = "its" if len(tasks) == 1 else "their"
        sentence = f"{who} {count} of {full} features to hold 90% of {energy} energy, so a lower rank loses much."
        yield LayerWarning("full_rank", sentence, "spectra", tasks, informational=True)


def _clusters(what_if: WhatIf, detail: LayerDetail, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Per task the cluster of nearly equal gains with most energy, if that deserves a look."""
    for index, spectrum in enumerate(detail.spectra):
        energy = cumulative_energy(what_if.made.factors[index].S)
        held = [(float(energy[stop] - energy[start]), start, stop) for start, stop in spectrum.clusters]
        share, start, stop = max(held, default=(0.0, 0, 0))
        if share >= 2 * ENERGY_OF_NOTE:
            sentence = (
                f"{names[index]}'s features {start + 1} to {stop} have nearly equal gains "
                f"({spectrum.gains[start]:.4g} to {spectrum.gains[stop - 1]:.4g}) and hold {share:.0%} of its energy. "
                "Individual features in this group are not unique; only the subspace they span is."
            )
            yield LayerWarning("cluster", sentence, "spectra", (index,), start, informational=True)


def _holders(what_if: WhatIf, task_names: Sequence[str]) -> Iterator[LayerWarning]:
    """Layers that not all tasks hold, and bases that are zero."""
    members = what_if.made.layer.members
    absent = [name for index, name in enumerate(task_names) if index not in members]
    if absent:
        verb = "do" if len(absent) > 1 else "does"
        sentence = f"{len(members)} of {len(task_names)} tasks hold this layer; {_few(absent)} {verb} not."
        yield LayerWarning("missing_tasks", sentence, "spectra", tuple(range(len(members))), informational=True)
    if not what_if.made.base_norm:
        sentence = "The base's weight is zero here, so there is nothing to compare the tasks' changes with."
        yield LayerWarning("base_zero", sentence, "spectra", (), informational=True)


def _few(words: Sequence[str]) -> str:
    """The first three of a list in words, and how many more there are."""
    return word_list(words if len(words) <= 3 else [*words[:2], f"{len(words) - 2} more"])
