"""What deserves a look in one layer, in plain words with the numbers behind them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sftm_app.inspection.layer import LayerDetail
from sftm_app.inspection.reasons import word_list
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.factors import Factors, cumulative_energy
from sftm_app.methods import METHODS
from sftm_app.methods.settings import merge_settings

# A change this much smaller than the others' median, or than the base's weight, plays no part in what a merge does.
BARELY_BESIDE_OTHERS = 0.1
BARELY_AT_ALL = 1e-4
# One task this many times larger than the next has nearly all of the energy (90 %), and with it the merge.
DOMINATES = 3.0
# Two features count as one direction when their entry of A is this large: cosines of 0.95 on both sides. Below 5 % of
# its task's energy a feature is too weak for its loss to be felt.
SAME_FEATURE = 0.9
ENERGY_OF_NOTE = 0.05
# Overlap of whole tasks from which they have the same features; random tasks of one rank stay far below.
SAME_TASK = 0.8
# Needing half of all features for 90% of the energy is what a matrix of noise does.
FULL_RANK = 0.5
# A rank that drops more than this of the energy changes the task's readout by a third (sqrt 0.1).
ENERGY_LOST = 0.1
# A merge that does worse than the plain average, by more than rounding and taste, and enough to be felt.
WORSE_THAN_AVERAGE = 1.25
ERROR_OF_NOTE = 0.1


@dataclass(frozen=True)
class LayerWarning:
    """One thing to look at. view: where its numbers are seen, "spectra", "overlap", "feature" or "what_if".

    tasks: positions among the layer's members. feature: of the first of them, counted from 0. informational: worth
    knowing, and no reason to change anything.
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
    """Everything of note in one layer under one merge, informational ones last. `task_names`: of the workspace."""
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
    """Tasks that changed next to nothing, and one that changed far more than the rest."""
    base = what_if.made.base_norm
    sizes = [float(torch.linalg.vector_norm(f.S)) for f in what_if.made.factors]
    unchanged = [index for index, size in enumerate(sizes) if size == 0.0]
    if unchanged:
        # A layer that was frozen for all tasks is no surprise.
        everybody = len(unchanged) == len(sizes)
        who = "None of the tasks changed" if everybody else f"{_few([names[i] for i in unchanged])} did not change"
        yield LayerWarning("unchanged", f"{who} this layer at all.", "spectra", tuple(unchanged), None, everybody)
    barely = list(unchanged)
    for index, size in enumerate(sizes):
        others = sizes[:index] + sizes[index + 1 :]
        usual = statistics.median(others) if others else 0.0
        if size == 0.0 or size >= max(BARELY_BESIDE_OTHERS * usual, BARELY_AT_ALL * base):
            continue
        barely.append(index)
        share = f"{size / base:.2g} of the base's weight" if base else f"{size:.2g}"
        beside = f", {size / usual:.2g} times the median of the others" if usual else ""
        told = f"{names[index]} barely changed this layer: {share}{beside}."
        yield LayerWarning("barely_changed", told, "spectra", (index,))
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    if len(order) > 1 and order[1] not in barely and sizes[order[0]] >= DOMINATES * sizes[order[1]]:
        first, second = order[:2]
        times = sizes[first] / sizes[second]
        told = f"{names[first]} changed this layer {times:.1f} times as much as {names[second]}, which is next: the "
        yield LayerWarning("dominates", told + "merged layer is mostly its own.", "spectra", (first,))


def _shared_features(what_if: WhatIf, detail: LayerDetail, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Pairs of tasks whose strong features, or all of them, point the same way or opposite ways."""
    for i, j in itertools.combinations(range(len(names)), 2):
        yield from _strong_features(what_if, names, i, j)
        if float(detail.both[i, j]) >= SAME_TASK:
            told = (
                f"{names[i]} and {names[j]} have almost the same features here: overlap {detail.both[i, j]:.2f} of 1."
            )
            yield LayerWarning("same_task", told, "overlap", (i, j), informational=True)


def _strong_features(what_if: WhatIf, names: Sequence[str], first: int, second: int) -> Iterator[LayerWarning]:
    """Of the strong features of two tasks the pair of most energy that agrees, and the one that opposes."""
    one, other = (_strong(what_if.made.factors[index]) for index in (first, second))
    A = (one.U.T @ other.U) * (one.Vh @ other.Vh.T)
    if not A.numel():
        return
    energy = torch.outer(one.S, other.S)
    for kind, signed in (("opposite", -A), ("same", A)):
        if float(signed.max()) < SAME_FEATURE:
            continue
        best = int((energy * (signed >= SAME_FEATURE)).argmax())
        at, there = divmod(best, other.rank)
        told = (
            f"{names[first]}'s feature {at + 1} and {names[second]}'s feature {there + 1} ({float(one.S[at]):.0%} and "
            f"{float(other.S[there]):.0%} of their energy) write and read almost the same direction"
        )
        if kind == "opposite":
            told += f" with opposite sign, A = {float(A[at, there]):.2f}: one of them will lose."
        else:
            told += f", A = {float(A[at, there]):.2f}: a plain sum counts it twice."
        yield LayerWarning(kind, told, "feature", (first, second), at, informational=kind == "same")


def _strong(factors: Factors) -> Factors:
    """The leading features that are worth a warning, with shares of energy in place of gains."""
    shares = cumulative_energy(factors.S).diff(prepend=factors.S.new_zeros(1, dtype=torch.float64)).to(factors.S)
    count = int((shares >= ENERGY_OF_NOTE).sum())
    return Factors(factors.U[:, :count], shares[:count], factors.Vh[:count], factors.how)


def _solution(prediction: Prediction, names: Sequence[str]) -> Iterator[LayerWarning]:
    """What the superposition could not do."""
    for conflict in prediction.conflicts:
        one, other = names[conflict.first], names[conflict.second]
        told = f"{one} and {other} oppose each other in this layer (cosine {conflict.cosine:.2f}): no superposition "
        yield LayerWarning("conflict", told + "keeps both.", "overlap", (conflict.first, conflict.second))
    if prediction.n_dropped:
        some = "1 direction" if prediction.n_dropped == 1 else f"{prediction.n_dropped} directions"
        rest = f" (condition of the rest {prediction.condition:.2g})" if prediction.condition is not None else ""
        told = f"The tasks share {some} so closely that the system does not determine how to divide them{rest}: the "
        told += "smallest solution is taken."
        yield LayerWarning("singular", told, "what_if", tuple(range(len(names))))


def _errors(what_if: WhatIf, prediction: Prediction, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Tasks of which the chosen merge keeps less than a plain average would."""
    settings = prediction.settings
    if settings.method == "average" or len(names) < 2:
        return
    average = what_if.predict(merge_settings("average", {}, settings.weights))
    title = METHODS[settings.method].title
    sizes = [float(torch.linalg.vector_norm(f.S)) for f in what_if.made.factors]
    weights = [settings.weights[member] for member in what_if.made.layer.members]
    for index, name in enumerate(names):
        if sizes[index] == 0.0:
            continue
        error, plain = prediction.readout_errors[index], average.readout_errors[index]
        if error > max(ERROR_OF_NOTE, WORSE_THAN_AVERAGE * plain):
            told = f"{title} with these settings keeps less of {name}'s features than a plain average: readout error "
            yield LayerWarning("readout_error", f"{told}{error:.2f} against {plain:.2f}.", "what_if", (index,))
        # Tasks that share nothing leak this much into each other when all are kept whole.
        others = [w * s for i, (w, s) in enumerate(zip(weights, sizes, strict=True)) if i != index]
        leak = sum(size**2 for size in others) ** 0.5 / sizes[index]
        error, plain = prediction.mapping_errors[index], average.mapping_errors[index]
        if error > max(ERROR_OF_NOTE, WORSE_THAN_AVERAGE * max(plain, leak)):
            told = f"What the merge writes for {name}'s inputs is far off: mapping error {error:.2f}, against "
            told += f"{plain:.2f} of a plain average and {leak:.2f} of tasks that share nothing."
            yield LayerWarning("mapping_error", told, "what_if", (index,))


def _ranks(
    what_if: WhatIf, detail: LayerDetail, prediction: Prediction, names: Sequence[str]
) -> Iterator[LayerWarning]:
    """Tasks that lose energy at the chosen rank; else those that would at most ranks."""
    full = min(detail.shape)
    lost = []
    for index, f in enumerate(what_if.made.factors):
        rank = prediction.ranks[index]
        kept = float(cumulative_energy(f.S)[rank - 1]) if 0 < rank < f.rank else 1.0
        lost.append((1.0 - kept, index))
    cut = sorted((share, index) for share, index in lost if share > ENERGY_LOST)[::-1]
    if cut:
        worst = [f"{share:.0%} of {names[index]}'s energy at rank {prediction.ranks[index]}" for share, index in cut]
        told = f"The rank drops {_few(worst)}. 90% of it would take rank "
        told += f"{max(detail.spectra[index].ranks_for_energy[0.90] for _, index in cut)} of {full}."
        yield LayerWarning("truncation", told, "spectra", tuple(index for _, index in cut))
    needed = [
        (spectrum.ranks_for_energy[0.90], index)
        for index, spectrum in enumerate(detail.spectra)
        if spectrum.ranks_for_energy[0.90] > FULL_RANK * full and full > 1
    ]
    if needed and not cut:
        needs = [f"{names[index]} needs {count}" for count, index in sorted(needed)[::-1]]
        told = f"The change has nearly full rank: {_few(needs)} of {full} features for 90% of its energy, so cutting "
        told += "the rank will cost."
        tasks = tuple(index for _, index in needed)
        yield LayerWarning("full_rank", told, "spectra", tasks, informational=True)


def _clusters(what_if: WhatIf, detail: LayerDetail, names: Sequence[str]) -> Iterator[LayerWarning]:
    """Per task the cluster of nearly equal gains that holds most energy, where that is worth a look."""
    for index, spectrum in enumerate(detail.spectra):
        energy = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative_energy(what_if.made.factors[index].S)])
        held = [(float(energy[stop] - energy[start]), start, stop) for start, stop in spectrum.clusters]
        share, start, stop = max(held, default=(0.0, 0, 0))
        if share >= 2 * ENERGY_OF_NOTE:
            told = f"{names[index]}'s features {start + 1} to {stop} have nearly equal gains "
            told += f"({spectrum.gains[start]:.4g} to {spectrum.gains[stop - 1]:.4g}) and hold {share:.0%} of its "
            told += "energy: single ones of them mean nothing, only the space that they span does."
            yield LayerWarning("cluster", told, "spectra", (index,), start, informational=True)


def _holders(what_if: WhatIf, task_names: Sequence[str]) -> Iterator[LayerWarning]:
    """Layers that not all tasks hold, and bases that are zero."""
    members = what_if.made.layer.members
    absent = [name for index, name in enumerate(task_names) if index not in members]
    if absent:
        verb = "do" if len(absent) > 1 else "does"
        told = f"{len(members)} of {len(task_names)} tasks hold this layer: {_few(absent)} {verb} not."
        yield LayerWarning("missing_tasks", told, "spectra", tuple(range(len(members))), informational=True)
    if not what_if.made.base_norm:
        told = "The base's weight is zero here, so changes cannot be measured beside it."
        yield LayerWarning("base_zero", told, "spectra", (), informational=True)


def _few(words: Sequence[str]) -> str:
    """The first three of a list in words, and how many more there are."""
    return word_list(words if len(words) <= 3 else [*words[:2], f"{len(words) - 2} more"])
