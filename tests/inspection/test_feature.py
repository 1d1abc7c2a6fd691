"""One feature in a merge: exact bookkeeping against the merged matrix itself, and the words for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from inspection_cases import NAMES, gaussian, made_of, orthogonal, with_features
from torch import Tensor

from sftm_app.architecture.blocks import Place
from sftm_app.errors import InputError
from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.feature import MOST_NEIGHBOURS, FeatureDetail, feature_detail
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.low_rank import dense
from sftm_app.methods import get_method
from sftm_app.methods.base import Features, Layer
from sftm_app.methods.calling import calibrated
from sftm_app.methods.settings import merge_settings
from sftm_app.planning.keys import at_scaling_1

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sftm", {"variant": "readout"}),
    ("sftm", {"variant": "mapping"}),
    ("sftm", {"variant": "readout", "rank": 3, "scaling": 0.7}),
    ("average", {}),
    ("task_arithmetic", {"scaling": 0.4}),
]


def detail_of(
    made: LayerFactors, member: int, feature: int, method: str = "sftm", weights: tuple[float, ...] = (1.0, 1.0, 1.0),
    **params: Any,
) -> FeatureDetail:  # fmt: skip
    what_if, variant = WhatIf(made), {"variant": "readout"} if method == "sftm" else {}
    settings = merge_settings(method, variant | params, weights)
    return feature_detail(what_if, what_if.predict(settings), NAMES, member, feature)


def merged(made: LayerFactors, prediction: Prediction) -> Tensor:
    """D in float64 from the coefficients, feature by feature."""
    D = torch.zeros(made.layer.shape, dtype=torch.float64)
    for f, a in zip(made.factors, prediction.coefficients, strict=True):
        D += (f.U.double() * a.double()) @ f.Vh.double()
    return D


@pytest.mark.parametrize(("method", "params"), METHODS)
def test_the_readout_is_the_coefficient_and_the_contributions_of_others(method: str, params: dict[str, Any]) -> None:
    weights = (1.0, 2.0, 0.5)
    made = made_of(gaussian(9, 7, 1), gaussian(9, 7, 2), gaussian(9, 7, 3))
    what_if = WhatIf(made)
    prediction = what_if.predict(merge_settings(method, params, weights))
    D = merged(made, prediction)
    for member, f in enumerate(made.factors):
        for k in range(f.rank):
            detail = feature_detail(what_if, prediction, NAMES, member, k)
            direct = float(f.U[:, k].double() @ D @ f.Vh[k].double())
            # Values and their float32 rounding are as large as the largest gain.
            close = 1e-5 * float(f.S[0])
            assert detail.readout == pytest.approx(direct, abs=close)
            assert detail.coefficient is not None and detail.rest is not None
            total = detail.coefficient + sum(n.contribution or 0.0 for n in detail.neighbours) + detail.rest
            assert total == pytest.approx(direct, abs=close)
            assert detail.coefficient == pytest.approx(float(prediction.coefficients[member][k]))
            scaling = params.get("scaling", 1.0)
            assert detail.wanted == pytest.approx(scaling * weights[member] * float(f.S[k]))


@pytest.mark.parametrize("variant", ["minimum_variance", "readout"])
@pytest.mark.parametrize("calibration", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_same_in_a_metric_and_with_calibration(variant: str, calibration: float, rank: int | None) -> None:
    weights = (1.0, 2.0, 0.5)
    shared = 2 * gaussian(9, 1, 5) @ gaussian(1, 7, 6)
    made = made_of(*(gaussian(9, 7, seed) + shared for seed in (1, 2, 3)))
    what_if, values = WhatIf(made), {"variant": variant, "calibration": calibration, "rank": rank, "scaling": 0.7}
    settings = merge_settings("sftm", values, weights)
    prediction = what_if.predict(settings)
    layer = Layer(
        [f.matrix() for f in made.factors], weights, made.read_base, lambda: [Features(f) for f in made.factors]
    )
    method = get_method("sftm")
    params = at_scaling_1(settings.params)  # what is calibrated is scaled afterwards
    D = 0.7 * dense(calibrated(method, layer, params, method.merge(layer, params)).delta).double()
    changes, acts = [], calibration > 0 and variant == "minimum_variance"
    for member, f in enumerate(made.factors):
        for k in range(f.rank):
            detail = feature_detail(what_if, prediction, NAMES, member, k)
            direct = float(f.U[:, k].double() @ D @ f.Vh[k].double())
            close = 2e-5 * float(f.S[0])
            assert detail.readout == pytest.approx(direct, abs=close)
            assert detail.coefficient is not None and detail.rest is not None
            others = sum(n.contribution or 0.0 for n in detail.neighbours) + detail.rest
            assert detail.coefficient + others + detail.calibrated == pytest.approx(direct, abs=close)
            if k < (rank or f.rank):  # before calibration every feature kept reads out what is asked
                assert detail.coefficient + others == pytest.approx(detail.wanted, abs=close)
            assert ("Calibration then changes" in detail.sentence) == acts
            changes.append(detail.calibrated)
    assert any(changes) == acts


def test_neighbours_are_the_strongest_entries_of_other_tasks_with_their_cosines() -> None:
    made = made_of(gaussian(9, 7, 1), torch.zeros(9, 7), gaussian(9, 7, 3))
    detail = detail_of(made, 2, 4)
    one, own = made.factors[0], made.factors[2]
    entries = (one.U.T @ own.U[:, 4]) * (one.Vh @ own.Vh[4])
    order = entries.abs().argsort(descending=True)
    assert [n.feature for n in detail.neighbours] == order.tolist()
    for n in detail.neighbours:
        assert (n.member, n.task) == (0, "a")
        assert n.gain == pytest.approx(float(one.S[n.feature]))
        assert n.entry == pytest.approx(float(entries[n.feature]), abs=1e-6)
        assert n.entry == pytest.approx(n.read_cosine * n.write_cosine, abs=1e-6)
        assert n.read_cosine == pytest.approx(float(one.Vh[n.feature] @ own.Vh[4]), abs=1e-6)
    many = detail_of(made_of(gaussian(20, 20, 1), gaussian(20, 20, 2), gaussian(20, 20, 3)), 1, 0)
    assert len(many.neighbours) == MOST_NEIGHBOURS and {n.member for n in many.neighbours} <= {0, 2}
    strengths = [abs(n.entry) for n in many.neighbours]
    assert strengths == sorted(strengths, reverse=True)


def test_where_a_feature_stands_in_its_task() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    made = made_of(with_features(U, [4.0, 2.0, 2.0, 1.0], V), gaussian(6, 5, 3), members=(0, 2))
    detail = detail_of(made, 0, 1)
    assert (detail.layer, detail.member, detail.task, detail.feature, detail.n_features) == ("x.weight", 0, "a", 1, 4)
    assert detail.energy_share == pytest.approx(4 / 25) and detail.energy_before == pytest.approx(16 / 25)
    assert detail.cluster == (1, 3) and "Features 2 to 3 have nearly equal gains." in detail.sentence
    first = detail_of(made, 0, 0)
    assert first.cluster is None and first.energy_before == 0.0 and first.energy_share == pytest.approx(16 / 25)
    weighted = detail_of(made, 1, 0, weights=(1.0, 5.0, 2.0))
    assert weighted.task == "c" and weighted.wanted == pytest.approx(2 * weighted.gain), "the weight of task c"


@pytest.mark.parametrize(("member", "feature"), [(2, 0), (-1, 0), (0, 5), (0, -1), (1, 0)])
def test_a_feature_that_does_not_exist_is_refused(member: int, feature: int) -> None:
    with pytest.raises(InputError, match=r"x\.weight: (task|feature) number"):
        detail_of(made_of(gaussian(6, 5, 1), torch.zeros(6, 5)), member, feature)


def shared(cosine: float, sign: float = 1.0, gain: float = 2.0) -> LayerFactors:
    """Two tasks of one feature each, a of gain 1 and b of `gain`, whose entry of A is sign * cosine^2."""
    U, V = torch.eye(6), torch.eye(5)
    tilted = [x[:, 0] * cosine + x[:, 1] * math.sqrt(1 - cosine**2) for x in (U, V)]
    return made_of(torch.outer(U[:, 0], V[:, 0]), sign * gain * torch.outer(*tilted))


def test_sftm_says_who_writes_the_rest_of_the_gain() -> None:
    detail = detail_of(shared(0.7), 0, 0)  # A = 0.49: a = (1 - 0.49 * 2) / (1 - 0.49^2)
    a, b = torch.linalg.solve(torch.tensor([[1, 0.49], [0.49, 1]]), torch.tensor([1.0, 2.0])).tolist()
    assert detail.coefficient == pytest.approx(a, abs=1e-5)
    assert detail.neighbours[0].contribution == pytest.approx(0.49 * b, abs=1e-5)
    assert detail.rest == pytest.approx(0, abs=1e-6) and detail.readout == pytest.approx(1, abs=1e-5)
    assert detail.sentence == f"b's feature 1 already contributes {0.49 * b:.3g} of the 1 needed, so SFTM adds {a:.3g}."


def test_sftm_says_what_it_subtracts_where_others_contribute_too_much() -> None:
    detail = detail_of(shared(0.9), 0, 0)
    assert detail.coefficient is not None and detail.coefficient < 0
    contributed = f"{detail.readout - detail.coefficient:.3g}"
    assert detail.sentence == (
        f"b's feature 1 already contributes {contributed} of the 1 needed, so SFTM subtracts {-detail.coefficient:.3g}."
    )


def test_sftm_says_who_takes_away_what_it_adds_more() -> None:
    detail = detail_of(shared(0.7, sign=-1.0, gain=1.0), 0, 0)
    assert detail.coefficient is not None and detail.coefficient > 1
    taken = f"{-(detail.neighbours[0].contribution or 0.0):.3g}"
    expected = f"b's feature 1 takes {taken} away from the 1 needed, so SFTM adds {detail.coefficient:.3g}."
    assert detail.sentence == expected


def test_sftm_says_when_no_feature_is_near() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    detail = detail_of(made_of(with_features(U, [2.0], V), with_features(U[:, 1:], [3.0], V[:, 1:])), 0, 0)
    assert detail.sentence == "Other features contribute almost nothing, so SFTM adds 2 of the 2 needed."


def test_many_weak_neighbours_are_told_of_together() -> None:
    made = made_of(gaussian(12, 12, 1), gaussian(12, 12, 2), gaussian(12, 12, 3))
    details = [detail_of(made, 0, k) for k in range(12)]
    explained = [detail for detail in details if detail.sentence.startswith("Other features")]
    assert explained
    for detail in explained:
        assert detail.coefficient is not None
        others = detail.readout - detail.coefficient
        does = "already contribute" if others > 0 else "take"
        assert f" {does} {abs(others):.3g} " in detail.sentence


def test_weight_and_scaling_are_part_of_what_is_asked_for() -> None:
    detail = detail_of(shared(0.7), 0, 0, weights=(3.0, 1.0, 1.0), scaling=0.5)
    assert "of the 1.5 needed (the gain 1 times the task's weight and the scaling), so SFTM " in detail.sentence
    assert detail.wanted == pytest.approx(1.5) and detail.readout == pytest.approx(1.5, abs=1e-5)
    made = shared(0.7)
    middle = dataclasses.replace(made, layer=dataclasses.replace(made.layer, place=Place(0.5, "mlp")))
    detail = detail_of(middle, 0, 0, depth=0.2)
    assert detail.wanted == pytest.approx(0.6) and detail.readout == pytest.approx(0.6, abs=1e-5)


def test_a_feature_that_is_cut_off_is_said_to_be() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    made = made_of(with_features(U, [3.0, 1.0], V), with_features(U[:, 1:], [2.0], V[:, 1:]))
    detail = detail_of(made, 0, 1, rank=1)
    assert detail.coefficient == 0.0
    assert detail.sentence.startswith("SFTM keeps 1 of a's 2 features here, so feature 2 is cut off. ")
    assert detail.sentence.endswith("Other features contribute 2, so 2 of its gain 1 is read back.")


@pytest.mark.parametrize(
    ("method", "title", "factor", "words"),
    [("average", "Plain average", 0.5, "half"), ("task_arithmetic", "Task arithmetic", 0.3, "0.3")],
)
def test_methods_with_known_coefficients_say_what_they_keep(method: str, title: str, factor: float, words: str) -> None:
    detail = detail_of(shared(0.7), 0, 0, method)
    contributed = f"Other features contribute {2 * factor * 0.49:.3g}, so "
    assert detail.sentence.startswith(f"{title} keeps {words} of each gain of a. {contributed}")


def test_mapping_is_the_average_where_every_task_reads_all_inputs() -> None:
    detail = detail_of(made_of(gaussian(7, 5, 1), gaussian(7, 5, 2)), 0, 0, variant="mapping", rank=None)
    assert detail.coefficient == pytest.approx(detail.gain / 2, rel=1e-4)
    assert detail.sentence.startswith("SFTM keeps half of each gain of a. ")


def test_a_method_that_does_not_combine_features_has_readouts_and_neighbours() -> None:
    made = made_of(gaussian(9, 7, 1), gaussian(9, 7, 2), gaussian(9, 7, 3))
    detail, solved = detail_of(made, 1, 2, "ties", density=0.5), detail_of(made, 1, 2, variant="readout")
    assert detail.coefficient is None and detail.rest is None
    assert [n.contribution for n in detail.neighbours] == [None] * len(solved.neighbours)
    for near, other in zip(detail.neighbours, solved.neighbours, strict=True):
        assert (near.task, near.feature, near.entry) == (
            other.task,
            other.feature,
            pytest.approx(other.entry, abs=1e-6),
        )
    what_if = WhatIf(made)
    prediction = what_if.predict(merge_settings("ties", {"density": 0.5}, (1.0, 1.0, 1.0)))
    assert detail.readout == float(prediction.readouts[1][2]) != 0.0
    assert detail.sentence == (
        "TIES does not combine features, so this one has no coefficient: "
        f"{detail.readout:.3g} of its gain {detail.gain:.3g} is read back."
    )


def test_conflicts_and_dropped_directions_are_reasons_too() -> None:
    U, V = orthogonal(6, 1), orthogonal(5, 2)
    D = with_features(U, [3.0, 1.0], V)
    detail = detail_of(made_of(D, -D), 0, 0)
    assert detail.readout == pytest.approx(0, abs=1e-4)
    assert "instead of 3." in detail.sentence
    assert "a and b oppose each other in this layer (cosine -1.00)" in detail.sentence
    assert "The tasks leave 2 directions undetermined" in detail.sentence
    made = made_of(gaussian(7, 9, 1), gaussian(7, 9, 2), gaussian(7, 9, 3))
    assert "does not meet every single gain" in detail_of(made, 0, 0, variant="mapping").sentence


def test_the_detail_is_plain_values() -> None:
    values = dataclasses.asdict(detail_of(shared(0.7), 0, 0))
    assert not any(isinstance(value, Tensor) for value in values.values())
