"""One singular feature in a merge: its coefficient, who else writes along it, and why, in words.

Every merge here adds D = sum_j a_j u_j v_j^T over the features j of all tasks, so that for each feature k

    u_k^T D v_k = sum_j A_kj a_j = a_k + sum_(j != k) A_kj a_j,    A = (U^T U) o (V^T V)

exactly: what is read of a feature is its own coefficient plus what the others contribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.inspection.reasons import Neighbour, reason, shortfall
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.factors import cumulative_energy
from sftm_app.linalg.overlap import gain_clusters
from sftm_app.methods import METHODS

MOST_NEIGHBOURS = 12


@dataclass(frozen=True)
class FeatureDetail:
    """One feature under one merge. feature counts from 0, of n_features; cluster is [start, stop) or None.

    energy_share, energy_before: the share of its task's energy that it holds, and that stronger ones hold, 0..1.
    coefficient: a of the added change; readout: u^T D v; wanted: scaling times the task's weight times the gain.
    neighbours: of other tasks, strongest |entry| first, at most 12. rest: the contributions of all other features, own
    ones included, so that coefficient + contributions of the neighbours + rest = readout.
    sentence: how the coefficient came about.
    """

    layer: str
    member: int
    task: str
    feature: int
    gain: float
    energy_share: float
    energy_before: float
    n_features: int
    cluster: tuple[int, int] | None
    coefficient: float
    readout: float
    wanted: float
    neighbours: tuple[Neighbour, ...]
    rest: float
    sentence: str


def feature_detail(
    what_if: WhatIf, prediction: Prediction, task_names: Sequence[str], member: int, feature: int
) -> FeatureDetail:
    """Everything about one feature, by the position of its task among the layer's members and its own, from 0.

    Raises
        InputError: there is no such member or feature.
    """
    made = what_if.made
    names = [task_names[index] for index in made.layer.members]
    _check(made.layer.name, names, [f.rank for f in made.factors], member, feature)
    S = made.factors[member].S
    energy = cumulative_energy(S)
    before = float(energy[feature - 1]) if feature else 0.0

    row = what_if.row(member, feature).to("cpu", torch.float64)
    contributions = row * torch.cat([a.to("cpu", torch.float64) for a in prediction.coefficients])
    starts = [sum(f.rank for f in made.factors[:index]) for index in range(len(names))]
    own = starts[member] + feature
    listed = _strongest(row, starts[member], starts[member] + S.numel())
    neighbours = tuple(_neighbour(what_if, names, starts, member, feature, at, row, contributions) for at in listed)
    contributions[[own, *listed]] = 0.0

    coefficient = float(prediction.coefficients[member][feature])
    readout = float(prediction.readouts[member][feature])
    scaling = METHODS[prediction.settings.method].scaling(prediction.settings.params)
    wanted = scaling * prediction.settings.weights[made.layer.members[member]] * float(S[feature])
    cluster = next((run for run in gain_clusters(S) if run[0] <= feature < run[1]), None)
    sentences = [
        reason(prediction, names, member, feature, float(S[feature]), wanted, neighbours),
        *shortfall(prediction, names, member, feature, wanted),
    ]
    if cluster:
        sentences.append(
            f"Its gain is nearly equal to those of features {cluster[0] + 1} to {cluster[1]}: only the space that they "
            "span together means something."
        )
    return FeatureDetail(
        made.layer.name, member, names[member], feature, float(S[feature]), float(energy[feature]) - before, before,
        S.numel(), cluster, coefficient, readout, wanted, neighbours, float(contributions.sum()), " ".join(sentences),
    )  # fmt: skip


def _check(layer: str, names: Sequence[str], ranks: Sequence[int], member: int, feature: int) -> None:
    if not 0 <= member < len(names):
        raise InputError(f"{layer}: task number {member} was asked for, but {len(names)} tasks hold it, from 0.")
    if not 0 <= feature < ranks[member]:
        raise InputError(
            f"{layer}: feature number {feature} of {names[member]} was asked for, but it has {ranks[member]}, counted "
            "from 0. Choose another one."
        )


def _strongest(row: Tensor, own_start: int, own_stop: int) -> list[int]:
    """Columns of A of other tasks by falling |entry|, at most MOST_NEIGHBOURS."""
    strength = row.abs()
    strength[own_start:own_stop] = -1.0
    n_others = len(row) - (own_stop - own_start)
    found: list[int] = strength.topk(min(MOST_NEIGHBOURS, n_others)).indices.tolist()
    return found


def _neighbour(
    what_if: WhatIf,
    names: Sequence[str],
    starts: Sequence[int],
    member: int,
    feature: int,
    at: int,
    row: Tensor,
    contributions: Tensor,
) -> Neighbour:
    other = max(index for index, start in enumerate(starts) if start <= at)
    theirs, own, j = what_if.made.factors[other], what_if.made.factors[member], at - starts[other]
    return Neighbour(
        other,
        names[other],
        j,
        float(theirs.S[j]),
        float(theirs.Vh[j] @ own.Vh[feature]),
        float(theirs.U[:, j] @ own.U[:, feature]),
        float(row[at]),
        float(contributions[at]),
    )
