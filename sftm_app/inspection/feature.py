"""One singular feature in a merge: its coefficient, who else writes along it, and why, in words.

A delta in the span of the features is D = sum_j a_j u_j v_j^T over the features j of all tasks. For each feature k

    u_k^T D v_k = sum_j A_kj a_j = a_k + sum_(j != k) A_kj a_j,    A = (U^T U) o (V^T V)

exactly: the readout of a feature is its own coefficient plus what the others contribute. In a metric (minimum
variance) the same holds with A's columns divided by their diagonal. Calibration shrinks the delta afterwards, so its
effect is the last term. Other deltas have readouts too, but neither coefficients nor contributions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.inspection.reasons import Neighbour, reason, shortfall
from sftm_app.inspection.what_if import Prediction, WhatIf, scaling_in
from sftm_app.linalg.factors import cumulative_energy
from sftm_app.linalg.overlap import gain_clusters
from sftm_app.linalg.system import starts
from sftm_app.methods.params import common_of

MOST_NEIGHBOURS = 12


@dataclass(frozen=True)
class FeatureDetail:
    """One feature under one merge.

    Attributes:
        layer: the layer's name.
        member, task: its task, by position in the layer and by name.
        feature: counted from 0, of n_features.
        gain: s.
        energy_share, energy_before: the share of its task's energy that it holds, and that stronger ones hold, 0..1.
        n_features: of its task.
        cluster: the features [start, stop) with nearly equal gains that it belongs to, or None.
        coefficient: a in the delta, before calibration; None for a delta outside the span of the features.
        calibrated: what calibration adds to the readout; 0 without it.
        readout: u^T D v.
        wanted: scaling times the task's weight times the gain.
        neighbours: features of other tasks, largest |entry of A| first, at most MOST_NEIGHBOURS.
        rest: the contributions of all other features, those of its own task included, so that coefficient +
            contributions of the neighbours + rest + calibrated = readout; None where there is no coefficient.
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
    coefficient: float | None
    calibrated: float
    readout: float
    wanted: float
    neighbours: tuple[Neighbour, ...]
    rest: float | None
    sentence: str


def feature_detail(
    what_if: WhatIf, prediction: Prediction, task_names: Sequence[str], member: int, feature: int
) -> FeatureDetail:
    """Collect everything about one feature.

    Args:
        what_if: the layer.
        prediction: the merge.
        task_names: of the whole workspace.
        member: the position of its task among the layer's members.
        feature: its place in the task, from 0.

    Raises:
        InputError: there is no such member or feature.
    """
    made = what_if.made
    names = [task_names[index] for index in made.layer.members]
    _check(made.layer.name, names, [f.rank for f in made.factors], member, feature)
    S = made.factors[member].S
    gain, energy = float(S[feature]), cumulative_energy(S)
    weight = prediction.settings.weights[made.layer.members[member]]
    wanted = scaling_in(made.layer, prediction.settings) * weight * gain
    solved = _uncalibrated(what_if, prediction)
    neighbours, rest = _neighbours(what_if, solved, names, member, feature)
    cluster = next((run for run in gain_clusters(S) if run[0] <= feature < run[1]), None)
    readout, before = (float(one.readouts[member][feature]) for one in (prediction, solved))
    sentences = [
        reason(solved, names, member, feature, gain, wanted, neighbours),
        *shortfall(solved, names, member, feature, wanted),
    ]
    if solved is not prediction:
        sentences.append(f"Calibration then changes its readout from {before:.3g} to {readout:.3g}.")
    if cluster:
        sentences.append(
            f"Features {cluster[0] + 1} to {cluster[1]} have nearly equal gains. They are not unique; only "
            "the subspace they span is."
        )
    return FeatureDetail(
        layer=made.layer.name,
        member=member,
        task=names[member],
        feature=feature,
        gain=gain,
        energy_share=float(energy[feature + 1] - energy[feature]),
        energy_before=float(energy[feature]),
        n_features=S.numel(),
        cluster=cluster,
        coefficient=None if solved.coefficients is None else float(solved.coefficients[member][feature]),
        calibrated=readout - before,
        readout=readout,
        wanted=wanted,
        neighbours=neighbours,
        rest=rest,
        sentence=" ".join(sentences),
    )


def _uncalibrated(what_if: WhatIf, prediction: Prediction) -> Prediction:
    """The same merge before its calibration, whose coefficients can be named."""
    settings = prediction.settings
    if common_of(settings.params).calibration == 0:
        return prediction
    return what_if.predict(replace(settings, params=replace(settings.params, calibration=0.0)))


def _check(layer: str, names: Sequence[str], ranks: Sequence[int], member: int, feature: int) -> None:
    if not 0 <= member < len(names):
        raise InputError(
            f"{layer}: task number {member} was asked for, but {len(names)} tasks hold the layer, counted from 0. "
            "Choose another one."
        )
    if not 0 <= feature < ranks[member]:
        raise InputError(
            f"{layer}: feature number {feature} of {names[member]} was asked for, but it has {ranks[member]}, counted "
            "from 0. Choose another one."
        )


def _neighbours(
    what_if: WhatIf, prediction: Prediction, names: Sequence[str], member: int, feature: int
) -> tuple[tuple[Neighbour, ...], float | None]:
    """The strongest neighbours of a feature, and what all other features contribute."""
    factors = what_if.made.factors
    offsets, own = starts(factors), factors[member]
    row = what_if.row(member, feature, prediction.settings).to("cpu", torch.float64)
    contributions: Tensor | None = None
    if prediction.coefficients is not None:
        contributions = row * torch.cat([a.to("cpu", torch.float64) for a in prediction.coefficients])
    strength = row.abs()
    strength[offsets[member] : offsets[member + 1]] = -1.0
    n_listed = min(MOST_NEIGHBOURS, len(row) - own.rank)
    listed = strength.topk(n_listed).indices.tolist()
    found = []
    for at in listed:
        other = bisect_right(offsets, at) - 1
        theirs, j = factors[other], at - offsets[other]
        found.append(
            Neighbour(
                member=other,
                task=names[other],
                feature=j,
                gain=float(theirs.S[j]),
                read_cosine=float(theirs.Vh[j] @ own.Vh[feature]),
                write_cosine=float(theirs.U[:, j] @ own.U[:, feature]),
                entry=float(row[at]),
                contribution=None if contributions is None else float(contributions[at]),
            )
        )
    if contributions is None:
        return tuple(found), None
    contributions[[offsets[member] + feature, *listed]] = 0.0
    return tuple(found), float(contributions.sum())
