"""Predictions against the merge itself: every method, rank and weight on layers of every shape and kind."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from inspection_cases import made_of
from torch import Tensor

from sftm_app.errors import InputError, RecipeError
from sftm_app.inspection import answers, input_projection
from sftm_app.inspection.what_if import Prediction, WhatIf
from sftm_app.linalg.factors import cut_all
from sftm_app.linalg.feature_gram import FeatureGram
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.metric import Metric
from sftm_app.linalg.preservation import errors, measure
from sftm_app.linalg.superposition import superpose, superposed_delta
from sftm_app.methods import METHODS, get_method
from sftm_app.methods.base import Features, Layer, Merged, SolveFigures
from sftm_app.methods.settings import MergeSettings, merge_settings

# Random features are independent while there are fewer of them than entries, so these layers are well posed.
TALL, WIDE, SQUARE = (30, 18), (18, 30), (24, 24)


def random_task(shape: tuple[int, int], seed: int, r: int | None = None, decay: float = 1.0) -> Tensor:
    """An (m, n) float32 matrix of rank r (default full) whose gains fall by 10^-decay."""
    generator = torch.Generator().manual_seed(seed)
    m, n = shape
    r = min(m, n) if r is None else r
    U = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64)).Q
    return ((U * torch.logspace(0, -decay, r, dtype=torch.float64)) @ V.T).float()


def tasks(kind: str, shape: tuple[int, int] = SQUARE) -> list[Tensor]:
    one, two, three = (random_task(shape, seed) for seed in (1, 2, 3))
    shared = 0.8 * random_task(shape, 9, r=4, decay=0.2)
    small = [random_task(shape, seed, r=3) for seed in (4, 5, 6)]
    return {
        "random": [one, two, three],
        "shared": [one + shared, two + shared, 0.4 * three + shared],
        "single": [one],
        "copies": [one, one, one],
        "near copies": [one, one + 1e-3 * two],
        "opposed": [one, -one],
        "one opposes": [one, two, 0.5 * three - one],
        "one zero": [one, torch.zeros(shape), two],
        "all zero": [torch.zeros(shape), torch.zeros(shape)],
        "low rank": small,
        "one missing direction": [random_task(shape, seed, r=min(shape) - 1) for seed in (1, 2)],
        "low and full": [small[0], one, two],
        "tiny and large": [1e-3 * one, two, 30 * three],
        "huge": [1e30 * one, 1e30 * two],
        "minute": [1e-30 * one, 1e-30 * two],
    }[kind]


KINDS = (
    "random", "shared", "single", "copies", "near copies", "opposed", "one opposes", "one zero", "all zero",
    "low rank", "one missing direction", "low and full", "tiny and large", "huge", "minute",
)  # fmt: skip
RANKS: tuple[Any, ...] = (None, 1, 7, 0.5, "60% energy", "99% energy")


def merged_by(what_if: WhatIf, matrices: list[Tensor], settings: MergeSettings) -> tuple[Tensor, SolveFigures | None]:
    """What the method itself makes of the task matrices."""
    made, method = what_if.made, get_method(settings.method)
    layer = Layer(
        matrices,
        [settings.weights[task] for task in made.layer.members],
        made.read_base,
        lambda: [Features(f) for f in made.factors],
        sum(settings.weights[task] for task in made.idle),
        name=made.layer.name,
        task_names=made.task_names,
    )
    result = method.merge(layer, settings.params)
    merged = result if isinstance(result, Merged) else Merged(result)
    return dense(merged.delta).to(made.factors[0].U), merged.solve


def check(what_if: WhatIf, matrices: list[Tensor], weights: list[float], method: str, **values: Any) -> Prediction:
    """The prediction, after comparing it with the merge itself."""
    settings = merge_settings(method, values, weights)
    found = what_if.predict(settings)
    factors = what_if.made.factors
    D, solve = merged_by(what_if, matrices, settings)
    kept = errors(measure(D, factors))
    said = f"{method} {values} {weights}"
    # Relative to the task matrix already.
    np.testing.assert_allclose(found.readout_errors, kept.readout, atol=1e-3, rtol=1e-3, err_msg=said)
    np.testing.assert_allclose(found.mapping_errors, kept.mapping, atol=1e-3, rtol=1e-3, err_msg=said)
    largest = max((float(f.S[0]) for f in factors if f.rank), default=1.0)
    size = float(D.double().norm()) / largest
    if found.coefficients is not None and getattr(settings.params, "variant", "") != "minimum_variance":
        parts = zip(factors, found.coefficients, strict=True)
        rebuilt = sum((f.U.double() * c.double()) @ f.Vh.double() for f, c in parts)
        assert float((rebuilt - D.double()).norm()) / largest <= 1e-3 * max(1.0, size), said
    assert found.norm / largest == pytest.approx(size, rel=1e-3, abs=1e-3), said
    for f, read in zip(factors, found.readouts, strict=True):
        wanted = (f.U.double() * (D.double() @ f.Vh.double().T)).sum(0) / largest
        assert float((read.double() / largest - wanted).norm()) <= 1e-3 * max(1.0, size), said
    assert found.ranks == tuple(f.rank for f in cut_all(factors, getattr(settings.params, "rank", None)))
    conflicts = solve.conflicts if solve else ()
    assert [(c.first, c.second) for c in found.conflicts] == [(c.first, c.second) for c in conflicts], said
    for conflict, other in zip(found.conflicts, conflicts, strict=True):
        assert conflict.cosine == pytest.approx(other.cosine, abs=1e-3)
    return found


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_what_the_merge_does(kind: str, shape: tuple[int, int], stored: bool) -> None:
    matrices = tasks(kind, shape)
    what_if = WhatIf(made_of(*matrices), stored)
    plain = [1.0] * len(matrices)
    uneven = [0.5, 1.0, 3.0, 0.2][: len(matrices)]
    for weights, variant, rank in itertools.product((plain, uneven), ("readout", "mapping"), RANKS):
        check(what_if, matrices, weights, "sftm", variant=variant, rank=rank, scaling=0.7)
    check(what_if, matrices, uneven, "sftm", scaling=0.0)
    for weights in (plain, uneven):
        check(what_if, matrices, weights, "average")
        check(what_if, matrices, weights, "task_arithmetic", scaling=0.3)


def test_every_method_of_the_table_is_predicted() -> None:
    for name, method in METHODS.items():
        count = method.n_tasks or 3
        what_if = WhatIf(made_of(*tasks("random")[:count]))
        assert len(what_if.predict(merge_settings(name, {}, (1.0,) * count)).readout_errors) == count


@pytest.mark.parametrize("shape", [TALL, WIDE, SQUARE], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("stored", [True, False])
def test_methods_that_do_not_combine_features_are_asked_themselves(shape: tuple[int, int], stored: bool) -> None:
    matrices = tasks("shared", shape)
    base = random_task(shape, 7)
    what_if = WhatIf(made_of(*matrices, base=base), stored)
    for weights in ([1.0, 1.0, 1.0], [0.5, 1.0, 3.0]):
        for values in ({}, {"density": 0.5, "scaling": 0.3}):
            found = check(what_if, matrices, weights, "ties", **values)
            assert found.coefficients is None and found.condition is None
            D, _ = merged_by(what_if, matrices, found.settings)
            assert_close(what_if.spectrum(found), np.linalg.svd(D.numpy(), compute_uv=False), 1e-3)
    two = WhatIf(made_of(*matrices[:2], base=base), stored)
    check(two, matrices[:2], [1.0, 2.0], "slerp")
    with pytest.raises(RecipeError, match="exactly 2 tasks, not 3"):
        what_if.predict(merge_settings("slerp", {}, (1.0, 1.0, 1.0)))


def test_another_scaling_does_not_ask_the_method_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    ties = METHODS["ties"]

    def merge(layer: Layer, params: Any) -> Any:
        calls.append(params.scaling)
        return ties.merge(layer, params)

    monkeypatch.setitem(METHODS, "ties", dataclasses.replace(ties, merge=merge))
    what_if = WhatIf(made_of(*tasks("random")))
    norms = [
        what_if.predict(merge_settings("ties", {"scaling": scaling}, (1.0, 1.0, 1.0))).norm for scaling in (1.0, 0.5)
    ]
    assert calls == [1.0] and norms[1] == pytest.approx(norms[0] / 2)


def test_the_average_is_that_of_the_method() -> None:
    what_if = WhatIf(dataclasses.replace(made_of(*tasks("random")[:2], members=(1, 3)), idle=(0, 2)))
    weights = (4.0, 1.0, 0.5, 2.0)
    average, found = what_if.predict(merge_settings("average", {}, weights)), what_if.average_errors(weights)
    assert (found.readout, found.mapping) == (average.readout_errors, average.mapping_errors)


def test_idle_adapters_count_in_an_average() -> None:
    matrices = tasks("random")[:2]
    made = dataclasses.replace(made_of(*matrices, members=(1, 3)), idle=(0, 2))
    check(WhatIf(made), matrices, [4.0, 1.0, 0.5, 2.0], "average")
    for variant in ("minimum_variance", "readout"):
        check(WhatIf(made), matrices, [4.0, 1.0, 0.5, 2.0], "sftm", variant=variant, calibration=0.0)
    with pytest.raises(InputError, match="2 task weights, but more tasks"):
        WhatIf(made).predict(merge_settings("average", {}, (1.0, 1.0)))


@pytest.fixture
def nothing_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged matrix is not formed, and no superposition is solved the slow way."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("formed")

    for module, name in (
        (answers, "superpose"),
        (answers, "superposed"),
        (input_projection, "superposed"),
        (input_projection, "System"),
    ):
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.usefixtures("nothing_is_formed")
@pytest.mark.parametrize("kind", ["random", "shared", "single", "one missing direction", "tiny and large"])
@pytest.mark.parametrize("shape", [TALL, SQUARE], ids=["tall", "square"])
def test_where_tasks_read_nearly_all_inputs_nothing_is_formed(kind: str, shape: tuple[int, int]) -> None:
    what_if = WhatIf(made_of(*tasks(kind, shape)))
    weights = (1.0, 0.5, 2.0)[: len(what_if.made.factors)]
    for rank in RANKS:
        what_if.predict(merge_settings("sftm", {"variant": "readout", "rank": rank}, weights))
    for method, values in (("average", {}), ("task_arithmetic", {}), ("sftm", {"variant": "mapping", "rank": None})):
        what_if.predict(merge_settings(method, values, weights))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The solves from here on."""
    calls: list[Any] = []
    solve = FeatureGram.solve
    monkeypatch.setattr(FeatureGram, "solve", lambda *given: calls.append(given) or solve(*given))
    return calls


@pytest.mark.parametrize("variant", ["readout", "mapping"])
def test_moving_scaling_solves_once_and_moving_one_weight_once_more(variant: str, solved: list[Any]) -> None:
    matrices = tasks("shared")
    what_if = WhatIf(made_of(*matrices))
    for step in range(1, 11):
        check(what_if, matrices, [1.0, 1.0, 1.0], "sftm", variant=variant, scaling=0.1 * step, rank=5)
    assert len(solved) == 1
    for step in range(1, 11):
        check(what_if, matrices, [1.0, 0.3 * step, 1.0], "sftm", variant=variant, rank=5)
    assert len(solved) == 2
    for first, last in itertools.product((0.1, 4.0), repeat=2):
        check(what_if, matrices, [first, 1.0, last], "sftm", variant=variant, rank=5)
    assert len(solved) == 3
    check(what_if, matrices, [1.0, 1.0, 1.0], "sftm", variant=variant, rank=6)
    assert len(solved) == 4


def test_large_weights_are_for_superpose(solved: list[Any]) -> None:
    matrices = tasks("shared")
    for variant in ("readout", "mapping"):
        check(WhatIf(made_of(*matrices)), matrices, [100.0, 1.0, 0.01], "sftm", variant=variant, rank=5)
    assert solved == []


def test_ranks_that_keep_the_same_features_are_one_rank(solved: list[Any]) -> None:
    what_if = WhatIf(made_of(*tasks("random")))
    for rank in (12, 0.5, 12):
        settings = merge_settings("sftm", {"variant": "readout", "rank": rank}, (1, 1, 1))
        assert what_if.predict(settings).ranks == (12, 12, 12)
    assert len(solved) == 1


def test_a_second_rank_or_variant_does_not_disturb_the_first() -> None:
    what_if = WhatIf(made_of(*tasks("shared")))
    asked = [merge_settings("sftm", {"rank": rank}, (1, 2, 1)) for rank in (5, None, "90% energy")]
    asked += [
        merge_settings("sftm", {"variant": "mapping", "rank": 5}, (1, 2, 1)),
        merge_settings("average", {}, (1, 2, 1)),
    ]
    first = [what_if.predict(settings).mapping_errors for settings in asked]
    again = [what_if.predict(settings).mapping_errors for settings in reversed(asked)]
    assert first == again[::-1]


def test_settings_are_checked_and_comparable() -> None:
    settings = merge_settings("sftm", {"rank": "energy 0.9", "scaling": 1}, [1, 2.0])
    assert settings == merge_settings("sftm", {"rank": "90% energy"}, (1.0, 2.0))
    assert len({settings, merge_settings("sftm", {"rank": "90% energy"}, (1.0, 2.0))}) == 1
    assert (settings.params.rank, settings.weights) == ("90% energy", (1.0, 2.0))
    for method, values, weights in (
        ("sftn", {}, [1]), ("sftm", {"rnk": 1}, [1]), ("sftm", {"rank": 0}, [1]), ("average", {"scaling": 1}, [1]),
        ("sftm", {}, [0]), ("sftm", {}, [float("nan")]), ("sftm", {}, [float("inf")]),
        ("sftm", {}, [True]), ("sftm", {}, ["1"]),
    ):  # fmt: skip
        with pytest.raises(RecipeError):
            merge_settings(method, values, weights)


@pytest.mark.parametrize("kind", ["random", "low rank", "copies", "all zero"])
def test_the_spectrum_is_that_of_the_merged_matrix(kind: str) -> None:
    what_if = WhatIf(made_of(*tasks(kind, TALL)))
    found = what_if.predict(
        merge_settings("sftm", {"variant": "readout", "rank": 2, "scaling": 0.5}, (1.0,) * len(what_if.made.factors))
    )
    D = sum(
        (f.U.double() * c.double()) @ f.Vh.double()
        for f, c in zip(what_if.made.factors, found.coefficients, strict=True)
    )
    wanted = np.linalg.svd(D.numpy(), compute_uv=False)
    spectrum = what_if.spectrum(found)
    assert list(spectrum) == sorted(spectrum, reverse=True) and len(spectrum) <= 18
    assert_close([*spectrum, *[0.0] * (18 - len(spectrum))], wanted)


@pytest.mark.parametrize("stored", [True, False])
def test_rows_and_interference_are_those_of_A(stored: bool) -> None:
    what_if = WhatIf(made_of(*tasks("one zero", TALL)), stored)
    U = torch.cat([f.U.double() for f in what_if.made.factors], 1)
    V = torch.cat([f.Vh.double() for f in what_if.made.factors]).T
    A = ((U.T @ U) * (V.T @ V)).numpy()
    readout = merge_settings("sftm", {"variant": "readout"}, (1.0, 1.0, 1.0))
    what_if.predict(readout)
    assert_close(what_if.row(2, 3, readout), A[18 + 3], 1e-6)
    assert_close(what_if.row(0, 17, readout), A[17], 1e-6)
    apart = A - np.eye(36)
    overall, own = what_if.interference
    assert overall == pytest.approx(np.linalg.norm(apart) / 6, abs=1e-5)
    wanted = [np.sqrt((apart[:18] ** 2).sum(1).mean()), 0.0, np.sqrt((apart[18:] ** 2).sum(1).mean())]
    assert_close(own, wanted)
    for member, feature in ((1, 0), (0, 18), (0, -1)):
        with pytest.raises(InputError, match="so none at"):
            what_if.row(member, feature, readout)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("kind", ["random", "shared", "one opposes", "single", "all zero"])
def test_the_condition_is_about_that_of_the_system(kind: str, stored: bool) -> None:
    what_if = WhatIf(made_of(*tasks(kind)), stored)
    for rank in (None, 4):
        cut = [f.cut(rank) for f in what_if.made.factors]
        U, V = torch.cat([f.U.double() for f in cut], 1), torch.cat([f.Vh.double() for f in cut]).T
        values = torch.linalg.eigvalsh((U.T @ U) * (V.T @ V))
        wanted = float(values[-1] / values[0]) if len(values) else 1.0
        assert wanted / 1.5 <= what_if.condition(rank) <= 1.5 * wanted


def test_one_layer_answers_many_threads() -> None:
    what_if = WhatIf(made_of(*tasks("shared")))
    asked = [
        merge_settings("sftm", {"rank": rank, "variant": variant}, (1.0, weight, 1.0))
        for rank, variant, weight in itertools.product((3, 9, None), ("readout", "mapping"), (0.5, 1.0, 2.0))
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(what_if.predict, asked))
    for settings, prediction in zip(asked, found, strict=True):
        alone = WhatIf(what_if.made).predict(settings)
        np.testing.assert_allclose(prediction.readout_errors, alone.readout_errors, atol=1e-3)
        np.testing.assert_allclose(prediction.mapping_errors, alone.mapping_errors, atol=1e-3)


def test_what_is_kept_stays_within_what_is_said() -> None:
    what_if = WhatIf(made_of(*tasks("random", WIDE)))
    assert WhatIf(what_if.made, stored=False).n_bytes < what_if.n_bytes
    for rank, weight in itertools.product((None, 3, 4, 5), (0.5, 1.0, 2.0)):
        what_if.predict(merge_settings("sftm", {"variant": "readout", "rank": rank}, (1.0, weight, weight**2)))
    assert held_bytes(what_if) <= what_if.n_bytes


def held_bytes(thing: object) -> int:
    """All tensors that are reached from an object, each storage once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    todo = [thing]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item
        elif type(item).__module__.startswith("sftm_app"):
            todo += vars(item).values()
        elif type(item).__name__ == "partial":
            todo += [*item.args, item.func]  # type: ignore[attr-defined]
        elif hasattr(item, "values") and hasattr(item, "maxsize"):
            todo += item.values()
    assert found
    return sum(found.values())


@pytest.mark.parametrize("sides", ["both", "inputs"])
@pytest.mark.parametrize("rank", [None, 5])
def test_minimum_variance_is_answered_as_it_is_merged(rank: int | None, sides: str) -> None:
    """The prediction is that of the merge, and a feature's row of A explains its readout."""
    what_if = WhatIf(made_of(*tasks("shared", TALL)))
    params = {"variant": "minimum_variance", "rank": rank, "sides": sides, "loading": 0.7, "scaling": 0.5}
    params["calibration"] = 0.0
    settings = merge_settings("sftm", params, (1.0, 0.5, 1.0))
    found = what_if.predict(settings)
    factors = what_if.made.factors
    cut = [f.cut(rank) for f in factors]
    metric = Metric(0.7, 0.7 if sides == "both" else None)
    D = 0.5 * dense(superposed_delta(cut, superpose(cut, weights=(1.0, 0.5, 1.0), metric=metric)))
    for f, readouts, c in zip(factors, found.readouts, cut, strict=True):
        assert_close(readouts, ((f.U.T @ D.float()) * f.Vh).sum(1), 1e-5)
        assert c.rank == rank or rank is None
    assert found.coefficients is not None
    coefficients = torch.cat([c.float() for c in found.coefficients])
    for member, feature in ((0, 0), (2, 4), (1, 11)):
        row = what_if.row(member, feature, settings)
        assert float(row @ coefficients) == pytest.approx(float(found.readouts[member][feature]), abs=1e-4 * found.norm)
        if feature < found.ranks[member]:
            own = feature + sum(f.rank for f in factors[:member])
            assert float(row[own]) == pytest.approx(1.0, rel=1e-5)
    assert_close(what_if.spectrum(found)[:9], torch.linalg.svdvals(D.double())[:9], 1e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_cut_off_features_have_no_entries_in_a_metric(aligned: bool) -> None:
    """Few kept features are whitened inside their span, where those cut off have next to no length."""
    eye = torch.eye(40)[:, :12] * torch.logspace(0, -1, 12)
    matrices = [eye @ torch.eye(40)[12 * t : 12 * t + 12] for t in range(3)] if aligned else []
    what_if = WhatIf(made_of(*(matrices or [random_task((40, 40), seed, decay=1.0) for seed in (1, 2, 3)])))
    settings = merge_settings("sftm", {"rank": 2, "calibration": 0.0}, (1.0, 1.0, 1.0))
    kept = torch.cat([torch.arange(f.rank) < 2 for f in what_if.made.factors])
    for feature in (0, 1, 5):
        row = what_if.row(1, feature, settings)
        assert bool(row.isfinite().all()) and not bool(row[~kept].any())
    assert float(what_if.row(1, 1, settings)[what_if.made.factors[0].rank + 1]) == pytest.approx(1.0, rel=1e-5)
