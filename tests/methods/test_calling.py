"""Methods that misbehave: the engine names the method and the tensor, and nothing wrong is cached or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_cases import layer_of, random_matrices
from torch import Tensor

from sftm_app.api import merge_recipe
from sftm_app.errors import MethodError, NumericalError, ResourceError, SFTMError
from sftm_app.linalg.low_rank import LowRank
from sftm_app.methods import METHODS
from sftm_app.methods.base import Layer, Merged, Method
from sftm_app.methods.calling import call_method
from sftm_app.methods.params import NoParams
from sftm_app.session import Session

SHAPE = (9, 7)
SUM = {"embedding": "sum", "bias": "sum", "norm": "sum"}


def method_of(merge: Callable[..., Any], **changes: Any) -> Method:
    settings: dict[str, Any] = {"elementwise": False, "roles": SUM} | changes
    return Method("odd", "Odd", "s", "r", NoParams, merge, **settings)


def call(merge: Callable[..., Any], shape: tuple[int, ...] = SHAPE) -> Merged:
    return call_method(method_of(merge), layer_of(random_matrices(2, shape)), NoParams(), shape)


def returning(value: Any) -> Callable[..., Any]:
    return lambda layer, params: value


WRONG: dict[str, tuple[Any, str]] = {
    "a row less": (torch.ones(8, 7), r"a delta of shape \(8, 7\) for a tensor of shape \(9, 7\)"),
    "one row": (torch.ones(1, 7), r"a delta of shape \(1, 7\)"),
    "transposed": (torch.ones(7, 9), r"a delta of shape \(7, 9\)"),
    "flat": (torch.ones(63), r"a delta of shape \(63,\)"),
    "a number": (torch.tensor(1.0), r"a delta of shape \(\)"),
    "thin and too short": (LowRank(torch.ones(8, 2), torch.ones(2, 7)), r"a delta of shape \(8, 2\) x \(2, 7\)"),
    "thin, apart": (LowRank(torch.ones(9, 2), torch.ones(3, 7)), r"a delta of shape \(9, 2\) x \(3, 7\)"),
    "thin, one factor a vector": (LowRank(torch.ones(9), torch.ones(2, 7)), r"a delta of shape \(9,\) x \(2, 7\)"),
    "half precision": (torch.ones(SHAPE).half(), "float16 instead of"),
    "integers": (torch.ones(SHAPE).int(), "int32 instead of"),
    "complex numbers": (torch.ones(SHAPE).to(torch.complex64), "complex64 instead of"),
    "two types": (LowRank(torch.ones(9, 2).double(), torch.ones(2, 7)), "float32 and float64 instead of"),
    "nothing": (None, "NoneType instead of a tensor"),
    "a list": ([torch.ones(SHAPE)], "list instead of a tensor"),
    "an array": (torch.ones(SHAPE).numpy(), "ndarray instead of a tensor"),
    "other figures": (Merged(torch.ones(SHAPE), "solved"), "str instead of SolveFigures"),  # type: ignore[arg-type]
    "sparse": (torch.ones(SHAPE).to_sparse(), "sparse"),
    "expanded": (torch.ones(1, 1).expand(SHAPE), "expanded"),
    "no data": (torch.ones(SHAPE, device="meta"), "without data"),
    "a gradient": (torch.ones(SHAPE, requires_grad=True), "requires a gradient"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_added_is_refused(name: str) -> None:
    value, sentence = WRONG[name]
    with pytest.raises(MethodError, match=f"^Odd returned .*{sentence}.*fault of the method's code"):
        call(returning(value))


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(SHAPE),
        torch.ones(SHAPE).double(),
        torch.ones(7, 9).T,
        torch.full(SHAPE, 1e38),
        LowRank(torch.ones(9, 2).double(), torch.ones(2, 7).double()),
        LowRank(torch.ones(9, 0), torch.ones(0, 7)),
    ],
)
def test_what_can_be_added_is_returned_as_it_is(value: Any) -> None:
    assert call(returning(value)).delta is value
    assert call(returning(Merged(value))).delta is value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    delta = torch.ones(SHAPE)
    delta[3, 4] = value
    for result in (delta, LowRank(delta, torch.ones(7, 7))):
        with pytest.raises(NumericalError, match="Odd gave values that are NaN or infinite"):
            call(returning(result))


def test_an_error_of_the_method_names_its_kind_and_line() -> None:
    def fail(layer: Layer, params: Any) -> Tensor:
        return torch.ones(2) @ torch.ones(3)

    with pytest.raises(
        MethodError, match=r"Odd failed with RuntimeError \(.*\) in test_calling\.py, line \d+"
    ) as found:
        call(fail)
    assert isinstance(found.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [SFTMError("said already"), MemoryError(), RuntimeError("can't allocate memory")])
def test_errors_that_say_what_is_wrong_pass_through(error: Exception) -> None:
    def fail(layer: Layer, params: Any) -> Tensor:
        raise error

    with pytest.raises(type(error)) as found:
        call(fail)
    assert found.value is error


@pytest.mark.parametrize("roles", [{"embedding": "sum"}, SUM | {"norm": "sums"}, SUM | {"head": "sum"}])
def test_a_rule_for_every_role_is_needed(roles: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="odd: `roles` must give each of"):
        method_of(returning(None), roles=roles)


def with_method(monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Any], **changes: Any) -> None:
    monkeypatch.setitem(METHODS, "odd", method_of(merge, **changes))


def change_the_base(layer: Layer, params: Any) -> Tensor:
    layer.base().add_(1.0)
    return torch.zeros(tuple(layer.task_matrices[0].shape))


def explode(layer: Layer, params: Any) -> Tensor:
    raise KeyError("x")


@pytest.mark.usefixtures("small_layers_cached")
@pytest.mark.parametrize("measure", ["all", "none"])
@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize(
    ("merge", "sentence"),
    [
        (lambda layer, params: layer.task_matrices[0][:1], "Odd returned a delta of shape"),
        (
            lambda layer, params: layer.task_matrices[0] * float("nan"),
            "(Odd gave values that are NaN|\\d+ merged values are NaN)",
        ),
        (lambda layer, params: layer.base(), "Odd returned the base's weight itself"),
        (lambda layer, params: layer.base()[:].view(-1).view_as(layer.base()), "Odd returned the base's weight itself"),
        (change_the_base, "Odd changed the base's weight"),
        (explode, "Odd failed with KeyError"),
    ],
)
def test_a_merge_by_a_method_that_misbehaves_names_the_tensor(
    merge: Callable[..., Any],
    sentence: str,
    elementwise: bool,
    measure: str,
    monkeypatch: pytest.MonkeyPatch,
    recipe_for: Callable[..., Any],
    cached_session: Session,
    tmp_path: Path,
) -> None:
    with_method(monkeypatch, merge, elementwise=elementwise)
    recipe = recipe_for("ab", method="odd", measure=measure)
    for _ in range(2):  # whatever the first one did, it cached nothing
        with pytest.raises(SFTMError, match=rf"^'[a-z0-9_.]+\.weight': {sentence}"):
            merge_recipe(recipe, tmp_path / "out", cached_session)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_a_lack_of_memory_in_a_method_is_said_as_that(
    monkeypatch: pytest.MonkeyPatch, recipe_for: Callable[..., Any], session: Session, tmp_path: Path
) -> None:
    def fail(layer: Layer, params: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with_method(monkeypatch, fail)
    with pytest.raises(ResourceError, match="Out of memory at"):
        merge_recipe(recipe_for("ab", method="odd"), tmp_path / "out", session)


def test_methods_are_never_given_an_empty_tensor(
    monkeypatch: pytest.MonkeyPatch, models: Path, session: Session, tmp_path: Path
) -> None:
    """TIES has no largest entry there. A model and an adapter go different ways through the engine."""
    from tiny_checkpoints import change_weights

    from sftm_app.planning.recipe import make_recipe

    for folder, prefix in (("base", ""), ("a", "vit."), ("b", "vit.")):
        empty = {f"{prefix}none.weight": torch.zeros(0, 5), f"{prefix}none": torch.zeros(0)}
        change_weights(models / folder / "model.safetensors", lambda tensors, empty=empty: tensors.update(empty))
    for method in METHODS:
        for kind in ({}, {"kind": "adapter", "rank": 2}):
            recipe = make_recipe(models / "base", [models / "a", models / "b"], method, None, kind, "cpu")
            out = tmp_path / f"{method} {len(kind)}"
            records = merge_recipe(dataclasses.replace(recipe, measure="all"), out, session).tensors
            assert {record.shape for record in records if record.name.startswith("none")} == {(0, 5), (0,)}
