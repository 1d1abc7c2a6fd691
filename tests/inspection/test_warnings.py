"""Warnings: each arises where it should with its numbers, and none on an unremarkable layer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from inspection_cases import NAMES, gaussian, made_of, orthogonal, with_features

from sftm_app.inspection.factors import LayerFactors
from sftm_app.inspection.layer import layer_detail
from sftm_app.inspection.warnings import LayerWarning, layer_warnings
from sftm_app.inspection.what_if import WhatIf
from sftm_app.methods.settings import merge_settings

U, V = orthogonal(12, 1), orthogonal(12, 2)


def warn(
    made: LayerFactors, names: tuple[str, ...] = NAMES, method: str = "sftm", **params: Any
) -> tuple[LayerWarning, ...]:
    what_if = WhatIf(made)
    prediction = what_if.predict(merge_settings(method, params, [1.0] * len(names)))
    return layer_warnings(what_if, layer_detail(made, names), prediction, names)


def only(found: tuple[LayerWarning, ...], kind: str) -> LayerWarning:
    (one,) = [warning for warning in found if warning.kind == kind]
    return one


@pytest.mark.parametrize("shape", [(24, 16), (40, 40), (16, 48)])
@pytest.mark.parametrize("variant", ["readout", "mapping"])
def test_moderate_random_changes_are_unremarkable(shape: tuple[int, int], variant: str) -> None:
    for seed in range(3):
        changes = [0.05 * (1 + 0.3 * t) * gaussian(*shape, 10 * seed + t) for t in range(3)]
        found = warn(made_of(*changes, base_norm=10.0), variant=variant)
        assert [warning for warning in found if not warning.informational] == []


def test_moderate_low_rank_changes_give_nothing_at_all() -> None:
    changes = [gaussian(60, 4, 2 * t) @ gaussian(4, 50, 2 * t + 1) for t in range(3)]
    assert warn(made_of(*changes, base_norm=100.0)) == ()
    assert warn(made_of(changes[0], base_norm=100.0), ("a",)) == ()


def test_every_warning_is_a_sentence_with_a_number_and_a_view() -> None:
    D = with_features(U, [3.0, 2.999, 1.0], V)
    made = made_of(D, -D, 1e-6 * gaussian(12, 12, 3), torch.zeros(12, 12), base_norm=0.0, members=(0, 1, 2, 4))
    found = warn(made, ("a", "b", "c", "d", "e"))
    kinds = {warning.kind for warning in found}
    assert {"unchanged", "barely_changed", "opposite", "conflict", "singular", "base_zero", "missing_tasks"} <= kinds
    assert "cluster" in kinds
    for warning in found:
        assert warning.sentence.endswith(".") and warning.sentence[0].isalnum()
        assert warning.kind in ("unchanged", "base_zero") or re.search(r"\d", warning.sentence), warning
        assert warning.view in ("spectra", "overlap", "feature", "what_if")
        assert all(0 <= member < 4 for member in warning.tasks)
    later = [warning.informational for warning in found]
    assert later == sorted(later), "what can wait stands last"


def test_a_task_that_barely_changed_the_layer() -> None:
    big = gaussian(12, 12, 1)
    found = warn(made_of(big, 0.01 * gaussian(12, 12, 2), gaussian(12, 12, 3), base_norm=100.0))
    shown = only(found, "barely_changed")
    assert shown.tasks == (1,) and shown.view == "spectra"
    expected = (
        r"b barely changed this layer: the norm of its change is 0\.00\d+ of the base's weight, 0\.0\d+ times the "
        r"median of the other tasks\."
    )
    assert re.fullmatch(expected, shown.sentence)
    alone = warn(made_of(1e-5 * with_features(U, [1.0], V), base_norm=1.0), ("a",))
    shown = only(alone, "barely_changed")
    assert shown.sentence == "a barely changed this layer: the norm of its change is 1e-05 of the base's weight."


def test_tasks_that_did_not_change_the_layer() -> None:
    zero = torch.zeros(12, 12)
    shown = only(warn(made_of(gaussian(12, 12, 1), zero, zero)), "unchanged")
    assert shown.sentence == "b and c did not change this layer." and shown.tasks == (1, 2)
    assert not shown.informational
    (shown,) = warn(made_of(zero, zero, zero))
    assert shown.sentence == "None of the tasks changed this layer." and shown.informational


def test_a_task_that_dominates_by_size() -> None:
    found = warn(made_of(gaussian(12, 12, 1), 4 * gaussian(12, 12, 2), gaussian(12, 12, 3)))
    shown = only(found, "dominates")
    assert shown.tasks == (1,) and re.match(r"b changed this layer \d\.\d times as much as [ac]", shown.sentence)
    both = warn(made_of(gaussian(12, 12, 1), 0.01 * gaussian(12, 12, 2)))
    assert [warning.kind for warning in both if warning.kind in ("dominates", "barely_changed")] == ["barely_changed"]


def test_the_same_direction_with_opposite_sign() -> None:
    one = with_features(U, [1.0, 3.0], V)
    other = -2 * with_features(U, [1.0], V) + with_features(U[:, 4:], [1.0], V[:, 4:])
    found = warn(made_of(one, other))
    shown = only(found, "opposite")
    assert (shown.tasks, shown.feature, shown.view, shown.informational) == ((0, 1), 1, "feature", False)
    assert shown.sentence == (
        "a's feature 2 and b's feature 1 (10% and 80% of their energy) have almost the same directions with opposite "
        "sign (A = -1.00), so one of them will lose."
    )
    assert not any(warning.kind == "same" for warning in found)


def test_the_same_feature_twice_is_worth_knowing() -> None:
    found = warn(made_of(with_features(U, [2.0, 1.0], V), with_features(U, [2.0], V)))
    shown = only(found, "same")
    assert shown.informational and shown.tasks == (0, 1) and shown.feature == 0 and "A = 1.00" in shown.sentence
    whole = warn(made_of(*(with_features(U, [2.0, 1.0], V) for _ in range(2))))
    assert only(whole, "same_task").sentence == "a and b have almost the same features here (overlap 1.00)."
    assert only(whole, "singular").sentence.startswith("The tasks leave 2 directions undetermined")
    weak = warn(made_of(with_features(U, [9.0, 1.0], V), with_features(U[:, 1:], [1.0], V[:, 1:])))
    assert not any(warning.kind == "same" for warning in weak), "1 % of the energy is not worth a word"


def test_tasks_that_oppose_each_other() -> None:
    D = gaussian(12, 12, 1)
    shown = only(warn(made_of(D, -D)), "conflict")
    assert shown.sentence == "a and b oppose each other in this layer (cosine -1.00), so no merge keeps both."
    assert (shown.tasks, shown.view) == ((0, 1), "overlap")


def test_what_truncation_costs() -> None:
    flat = with_features(U, [1.0] * 12, V)
    made = made_of(flat, with_features(U, [9.0, 1.0], orthogonal(12, 5)))
    full = only(warn(made), "full_rank")
    assert full.informational and full.tasks == (0,)
    assert "Task a needs 11 of 12 features to hold 90% of its energy" in full.sentence
    found = warn(made, rank=3)
    cut = only(found, "truncation")
    assert cut.tasks == (0,) and not cut.informational
    assert cut.sentence == "The rank drops 75% of a's energy (rank 3). Keeping 90% of it takes rank 11 of 12."
    assert not any(warning.kind == "full_rank" for warning in found), "one of the two is enough"
    assert not any(warning.kind == "truncation" for warning in warn(made, rank=11))


def test_many_tasks_are_told_of_in_few_words() -> None:
    names = tuple("abcde")
    flat = [with_features(orthogonal(12, 2 * t), [1.0] * 12, orthogonal(12, 2 * t + 1)) for t in range(5)]
    shown = only(warn(made_of(*flat), names, rank=6), "truncation")
    assert shown.sentence.count("energy (rank 6)") == 2 and "and 3 more" in shown.sentence and len(shown.tasks) == 5


def test_a_merge_that_keeps_less_than_a_plain_average() -> None:
    made = made_of(gaussian(12, 12, 1), gaussian(12, 12, 2))
    found = warn(made, method="task_arithmetic", scaling=0.05)
    shown = [warning for warning in found if warning.kind == "readout_error"]
    assert [warning.tasks for warning in shown] == [(0,), (1,)] and shown[0].view == "what_if"
    assert re.fullmatch(
        r"Task arithmetic with these settings keeps less of a's features than a plain average: the readout error is "
        r"0\.9\d instead of 0\.\d\d\.", shown[0].sentence,
    )  # fmt: skip
    doubled = warn(made, method="task_arithmetic", scaling=2.0)
    assert [warning.tasks for warning in doubled if warning.kind == "mapping_error"] == [(0,), (1,)]
    assert not [warning for warning in warn(made, method="average") if warning.kind.endswith("_error")]


def test_strong_features_of_nearly_equal_gain() -> None:
    found = warn(made_of(with_features(U, [3.0, 2.999, 1.0], V), with_features(U, [3.0, 0.5, 0.499], V)))
    shown = only(found, "cluster")
    assert shown.informational and (shown.tasks, shown.feature) == ((0,), 0)
    assert shown.sentence.startswith("a's features 1 to 2 have nearly equal gains (3 to 2.999) and hold 95% of its ")


def test_layers_that_not_all_tasks_hold() -> None:
    made = made_of(gaussian(12, 12, 1), gaussian(12, 12, 2), members=(0, 3))
    shown = only(warn(made, ("a", "b", "c", "d")), "missing_tasks")
    assert shown.sentence == "2 of 4 tasks hold this layer; b and c do not." and shown.informational
    assert {warning.tasks for warning in warn(made, ("a", "b", "c", "d"))} <= {(0, 1), (0,), (1,)}


def test_a_base_of_zeros() -> None:
    found = warn(made_of(gaussian(12, 12, 1), gaussian(12, 12, 2), base_norm=0.0))
    assert only(found, "base_zero").tasks == () and not any(warning.kind == "barely_changed" for warning in found)
