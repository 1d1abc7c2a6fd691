"""Parameters declare themselves; the table of methods is complete."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from method_cases import layer_of

from sftm_app.errors import RecipeError
from sftm_app.linalg.factors import n_kept
from sftm_app.methods import METHODS, get_method
from sftm_app.methods.base import Merged
from sftm_app.methods.params import (
    CommonParams,
    check_size_rank,
    common_of,
    controls,
    make_params,
    parse_rank,
    values_of,
    values_to_name,
)
from sftm_app.methods.sftm import SFTMParams
from sftm_app.methods.task_arithmetic import TaskArithmeticParams


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("", None), ("full", None), (" Full ", None), ("none", None), ("null", None), ("100%", None),
        ("1", 1), ("32", 32), (" 7 ", 7), ("0.25", 0.25), ("25%", 0.25), ("12.5%", 0.125), ("1e-1", 0.1),
        ("90% energy", "90% energy"), ("energy 0.9", "90% energy"), ("energy 90%", "90% energy"),
        (" Energy  90 % ", "90% energy"), ("0.995 energy", "99.5% energy"), ("energy .5", "50% energy"),
        ("99.90% energy", "99.9% energy"), ("090% energy", "90% energy"), ("0.1% energy", "0.1% energy"),
        ("energy 0.07", "7% energy"), ("99.999999999% energy", "99.999999999% energy"),
    ],
)  # fmt: skip
def test_ranks_as_typed(text: str, rank: Any) -> None:
    assert parse_rank(text) == rank
    assert type(parse_rank(text)) is type(rank)


@pytest.mark.parametrize(
    "text",
    [
        "0", "-1", "1.0", "1.5", "0.0", "0%", "101%", "-5%", "nan", "nan%", "inf", "1e400", "x", "%", "3 4", "9" * 9999,
        "energy", "energy 90", "energy 1", "energy 0", "0% energy", "100% energy", "energy 101%", "-5% energy",
        "% energy",
        "energy .", "energy nan", "inf% energy", "1e-1 energy", "energy 90% energy", "energy energy 0.9", "9 0% energy",
        "energyy 0.9", "0." + "9" * 99 + " energy", "9" * 9999 + "% energy",
    ],
)  # fmt: skip
def test_what_is_no_rank(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is not a rank.*Give `full`"):
        parse_rank(text)


def test_a_rank_as_it_is_kept_reads_as_itself() -> None:
    for text in ("90% energy", "0.1% energy", "12.25% energy"):
        assert parse_rank(text) == text
        assert make_params(SFTMParams, {"rank": text}, "params").rank == text
        assert n_kept(text, 5, 4) == 4, "linalg understands it"


def test_a_rank_of_what_is_written_is_no_share_of_energy() -> None:
    assert [check_size_rank(value, "rank") for value in (None, 3, "25%", "full")] == [None, 3, 0.25, None]
    with pytest.raises(RecipeError, match=r"^rank: '90% energy' is a share .* Give it as the energy instead: 0.9\.$"):
        check_size_rank("90% energy", "rank")
    with pytest.raises(RecipeError, match="not a rank"):
        check_size_rank("energy", "rank")


@pytest.mark.parametrize("value", [True, 0, -3, 1.0, 0.0, float("nan"), [1], {}])
def test_ranks_of_a_recipe(value: Any) -> None:
    with pytest.raises(RecipeError, match="not a rank"):
        make_params(SFTMParams, {"rank": value}, "params")


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.0])
def test_limits_belong_to_the_range(value: float) -> None:
    made = make_params(SFTMParams, {"scaling": value}, "params")
    assert made.scaling == value
    assert type(made.scaling) is float


def test_whole_numbers() -> None:
    params = METHODS["dare_linear"].params
    for value in (3, 3.0):
        made = make_params(params, {"seed": value}, "params")
        assert made.seed == 3 and type(made.seed) is int
    for value, said in ((0.5, "0.5 is not a whole number"), (-1, "outside 0 to 999"), (True, "not a number")):
        with pytest.raises(RecipeError, match=said):
            make_params(params, {"seed": value}, "params")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scaling": -2.01}, "params: scaling: -2.01 is outside -2 to 2"),
        ({"scaling": 2.01}, "outside -2 to 2"),
        ({"scaling": float("nan")}, "outside"),
        ({"scaling": 10**400}, "outside"),
        ({"scaling": "1"}, "'1' is not a number"),
        ({"scaling": True}, "True is not a number"),
        ({"scaling": None}, "None is not a number"),
        ({"variant": "readuot"}, "'readuot' is not one of minimum_variance, readout, mapping"),
        ({"variant": ["readout"]}, "not one of"),
        ({"scalling": 1.0}, "'scalling' is not known. Did you mean 'scaling'?"),
        ({"zzz": 1.0}, "'zzz' is not known. Known are variant, rank, scaling"),
        ({3: 1.0}, "3 is not known"),
    ],
)
def test_values_that_are_refused(values: dict[Any, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_params(SFTMParams, values, "params")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_describes_itself(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert all(text.strip() for text in (method.title, method.summary, method.reference))
    assert re.search(r", ([A-Z]+ )?\d{4}\b|arXiv \d{4}\.\d{5}", method.reference), "where it was published"
    assert set(method.roles) == {"embedding", "bias", "norm"}
    assert set(method.roles.values()) <= {"sum", "average", "method"}
    assert method.n_tasks is None or method.n_tasks > 1
    assert dataclasses.is_dataclass(method.params) and method.params.__dataclass_params__.frozen  # type: ignore[attr-defined]
    found = controls(method.params)
    assert set(found) == {item.name for item in dataclasses.fields(method.params)}
    for control in found.values():
        assert control.kind in ("choice", "number", "rank")
        assert control.label and control.label[0].isupper()
        assert control.help.endswith(".")
        assert control.kind != "choice" or len(control.choices) > 1
        assert control.minimum < control.maximum
        assert control.kind != "number" or control.maximum < float("inf")
    # The defaults pass their own checks.
    assert make_params(method.params, dataclasses.asdict(method.params()), name) == method.params()
    assert "scaling" not in found or method.params().scaling > 0


def test_common_settings_come_last_and_are_off() -> None:
    params = make_params(TaskArithmeticParams, {"depth": 0.5, "scaling": 1}, "params")
    assert list(values_of(params))[-2:] == list(controls(TaskArithmeticParams))[-2:] == ["calibration", "depth"]
    assert common_of(params) == CommonParams(depth=0.5) != CommonParams() == common_of(object())
    assert set(values_to_name(TaskArithmeticParams())) == set(values_of(params)) - {"calibration", "depth"}
    assert values_to_name(params)["depth"] == 0.5 and "calibration" not in values_to_name(params)
    assert values_to_name(SFTMParams(rank=None))["rank"] is None
    with pytest.raises(RecipeError, match="calibration: 2 is outside 0 to 1"):
        make_params(TaskArithmeticParams, {"calibration": 2}, "params")


def test_sftm_keeps_of_each_task_what_holds_its_share_of_energy() -> None:
    steep, flat = (torch.diag(torch.tensor(gains)) for gains in ([4.0, 1.0, 0.5, 0.1], [1.0, 0.9, 0.8, 0.7]))
    merged = METHODS["sftm"].merge(layer_of([steep, flat]), SFTMParams(rank="90% energy"))
    assert isinstance(merged, Merged) and merged.solve is not None
    assert merged.solve.n_features == 1 + 4  # 16 of 17.26; 2.45 of 2.94 at three


def test_auto_cuts_only_where_the_tasks_have_more_features_than_the_layer_has_dimensions() -> None:
    steep, flat = (torch.diag(torch.tensor(gains)) for gains in ([4.0, 1.0, 0.5, 0.1], [1.0, 0.9, 0.8, 0.7]))
    thin = [torch.diag(torch.tensor(gains)) for gains in ([4.0, 0.1, 0.0, 0.0], [1.0, 0.1, 0.0, 0.0])]
    for matrices, count in (([steep, flat], 1 + 4), (thin, 2 + 2), ([steep], 4)):
        merged = METHODS["sftm"].merge(layer_of(matrices), SFTMParams(rank="auto"))
        assert isinstance(merged, Merged) and merged.solve is not None
        assert merged.solve.n_features == count
    assert SFTMParams().rank == make_params(SFTMParams, {"rank": "auto"}, "params").rank == "auto"
    with pytest.raises(RecipeError, match="'auto' is not a rank"):
        make_params(get_method("cart").params, {"rank": "auto"}, "params")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'task_arithmetics' is not known. Did you mean 'task_arithmetic'?"):
        get_method("task_arithmetics")
