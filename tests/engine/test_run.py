"""The merged tensors against a slow, direct float64 computation, tensor by tensor, that shares no code with the app."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file
from tiny_checkpoints import change_weights, save_task

from sftm_app.architecture.roles import Role
from sftm_app.engine import run as run_module
from sftm_app.engine.records import Figures, TensorRecord
from sftm_app.engine.run import run
from sftm_app.errors import InputError, NumericalError, ResourceError
from sftm_app.linalg import superposition
from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.solvers import Outcome
from sftm_app.methods import METHODS
from sftm_app.methods.params import NoParams
from sftm_app.output.findings import findings
from sftm_app.pipeline import prepare
from sftm_app.planning.device import resolve_device
from sftm_app.planning.plan import Plan
from sftm_app.planning.planner import make_plan, open_inputs
from sftm_app.planning.recipe import Recipe, make_recipe
from sftm_app.session import Session

Arrays = dict[str, np.ndarray]
Merged = Callable[[Recipe], dict[str, torch.Tensor]]


def arrays(folder: Path) -> Arrays:
    """A checkpoint's backbone as float64, without the prefix."""
    tensors = load_file(folder / "model.safetensors")
    return {
        name.removeprefix("vit."): tensor.double().numpy()
        for name, tensor in tensors.items()
        if not name.startswith("classifier")
    }


@pytest.fixture
def merged(session: Session) -> Merged:
    return lambda recipe: {step.entry.name: step.tensor for step in run(prepare(recipe, session), session)}


def is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name


def is_norm(name: str) -> bool:
    return "norm" in name


def features(change: np.ndarray, rank: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vh = np.linalg.svd(change, full_matrices=False)
    # What float32 inputs cannot tell from zero is no feature.
    kept = min(int((s > 1e-5 * s[0]).sum()), rank or len(s))
    return U[:, :kept], s[:kept], Vh[:kept]


def superpose(changes: list[np.ndarray], weights: list[float], params: dict[str, Any]) -> np.ndarray:
    """The dense system of DESIGN section 2, for all features at once, by least squares in float64."""
    variant, rank = params["variant"], params["rank"]
    parts = [features(change, rank) for change in changes]
    U = np.concatenate([u for u, _, _ in parts], 1)
    V = np.concatenate([vh.T for _, _, vh in parts], 1)
    s = np.concatenate([w * gains for w, (_, gains, _) in zip(weights, parts, strict=True)])
    G_u, G_v = U.T @ U, V.T @ V
    if variant == "minimum_variance":
        M, N = moment([v.T for _, _, v in parts], parts, 3.0), moment([u for u, _, _ in parts], parts, 3.0)
        wrote, read = np.linalg.solve(N, U), np.linalg.solve(M, V)
        return (wrote * np.linalg.lstsq((U.T @ wrote) * (V.T @ read), s, rcond=1e-10)[0]) @ read.T
    if variant == "readout":
        a = np.linalg.lstsq(G_u * G_v, s, rcond=1e-10)[0]
    else:
        a = np.linalg.lstsq(G_u * (G_v @ G_v), (G_u * G_v) @ s, rcond=1e-10)[0]
    return (U * a) @ V.T


def moment(directions: list[np.ndarray], parts: list[tuple[np.ndarray, ...]], loading: float) -> np.ndarray:
    """M or N of minimum variance."""
    size = len(directions[0])
    total = sum((x * (s**2 / (s**2).sum())) @ x.T for x, (_, s, _) in zip(directions, parts, strict=True))
    return total * size / len(parts) + loading * np.eye(size)


def expected(folder: Path, tasks: str, weights: list[float], method: str, params: dict[str, Any]) -> Arrays:
    base, others = arrays(folder / "base"), [arrays(folder / task) for task in tasks]
    result = {}
    for name, origin in base.items():
        changes = [other[name] - origin for other in others]
        total = sum(w * change for w, change in zip(weights, changes, strict=True))
        if method == "average":
            change = total / sum(weights)
        elif method == "task_arithmetic":
            change = params["scaling"] * total
        elif is_matrix(name):
            flat = [change.reshape(change.shape[0], -1) for change in changes]
            change = params["scaling"] * superpose(flat, weights, params)
            change = change.reshape(origin.shape)
        else:
            change = total / sum(weights)
        result[name] = origin + change
    return result


def assert_all_close(found: dict[str, torch.Tensor], wanted: Arrays, tolerance: float) -> None:
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        assert_close(tensor, wanted[name], tolerance, what=name)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("average", {}),
    ("task_arithmetic", {"scaling": 0.3}),
    ("task_arithmetic", {"scaling": 1.0}),
    ("sftm", {"variant": "minimum_variance", "rank": None, "scaling": 1.0, "calibration": 0.0}),
    ("sftm", {"variant": "minimum_variance", "rank": 3, "scaling": 0.7, "calibration": 0.0}),
    ("sftm", {"variant": "readout", "rank": None, "scaling": 1.0}),
    ("sftm", {"variant": "readout", "rank": 3, "scaling": 0.7}),
    ("sftm", {"variant": "mapping", "rank": 4, "scaling": 1.0}),
    ("sftm", {"variant": "mapping", "rank": None, "scaling": 1.0}),
]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.5, 2.0]])
@pytest.mark.parametrize(("method", "params"), CASES)
def test_every_tensor_against_the_direct_computation(
    merged: Merged, tiny_models: Path, method: str, params: dict[str, Any], weights: list[float]
) -> None:
    tasks = [{"path": tiny_models / t, "weight": w} for t, w in zip("abc", weights, strict=True)]
    recipe = make_recipe(tiny_models / "base", tasks, method, params, device="cpu")
    assert_all_close(merged(recipe), expected(tiny_models, "abc", weights, method, params), 5e-5)


@pytest.mark.parametrize(("method", "params"), [("sftm", {}), ("average", {}), ("task_arithmetic", {"scaling": 1.0})])
def test_one_task_at_scaling_1_gives_that_task_back(
    merged: Merged, tiny_models: Path, recipe_for: Callable, method: str, params: dict[str, Any]
) -> None:
    found = merged(recipe_for("a", method=method, params=params))
    assert_all_close(found, arrays(tiny_models / "a"), 5e-6)


def test_scaling_0_gives_the_base_back_but_for_what_is_averaged(
    merged: Merged, tiny_models: Path, recipe_for: Callable
) -> None:
    base = arrays(tiny_models / "base")
    for method, averaged in (("sftm", lambda name: not is_matrix(name)), ("task_arithmetic", lambda name: False)):
        found = merged(recipe_for("ab", method=method, params={"scaling": 0.0}))
        for name, tensor in found.items():
            assert np.array_equal(tensor.double().numpy(), base[name]) != averaged(name), name


def test_copies_of_one_task_count_once_for_sftm_and_each_time_for_a_sum(merged: Merged, tiny_models: Path) -> None:
    twice = [{"path": tiny_models / "a", "name": name} for name in ("x", "y")]
    name = "encoder.layer.0.intermediate.dense.weight"
    base, task = arrays(tiny_models / "base")[name], arrays(tiny_models / "a")[name]
    sftm = merged(make_recipe(tiny_models / "base", twice, params={"rank": None}, device="cpu"))[name]
    assert_close(sftm, task, 5e-6)
    summed = merged(make_recipe(tiny_models / "base", twice, "task_arithmetic", {"scaling": 1.0}, device="cpu"))[name]
    assert_close(summed, base + 2 * (task - base), 5e-6)


@pytest.mark.parametrize("method", ["sftm", "average", "task_arithmetic"])
def test_the_order_of_tasks_does_not_matter(merged: Merged, recipe_for: Callable, method: str) -> None:
    left, right = merged(recipe_for("abc", method=method)), merged(recipe_for("cab", method=method))
    for name in left:
        assert_close(left[name], right[name], what=name)


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_sums_may_be_made_of_any_pieces(
    merged: Merged,
    recipe_for: Callable,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    dtype: str | None,
    n_threads: int,
    session: Session,
) -> None:
    recipe = recipe_for(method=method, output={"dtype": dtype}, measure="none")
    whole = merged(recipe)
    assert max(tensor.numel() for tensor in whole.values()) < run_module.SPAN
    monkeypatch.setattr(run_module, "SPAN", 37)
    several = dataclasses.replace(session, n_threads=n_threads)
    pieces = {step.entry.name: step.tensor for step in run(prepare(recipe, several), several)}
    assert all(torch.equal(pieces[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("method", METHODS)
def test_measuring_changes_nothing_of_the_result(merged: Merged, recipe_for: Callable, method: str) -> None:
    measured, bare = (merged(recipe_for("ab", method=method, measure=measure)) for measure in ("all", "none"))
    assert all(torch.equal(bare[name], tensor) for name, tensor in measured.items())


@pytest.mark.parametrize("method", ["sftm", "average"])
def test_a_second_run_is_bit_identical(merged: Merged, recipe_for: Callable, method: str) -> None:
    left, right = merged(recipe_for("abc", method=method)), merged(recipe_for("abc", method=method))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_half_precision_tasks_are_upcast_before_anything(merged: Merged, models: Path) -> None:
    save_task(models / "half", models / "base", 9, 3, torch.float16)
    params = {"variant": "readout", "rank": None, "scaling": 1.0}
    recipe = make_recipe(models / "base", [models / "half", models / "a"], params=params, device="cpu")
    wanted = {}
    folder = models
    (models / "h").symlink_to(models / "half")
    wanted = expected(folder, "ha", [1.0, 1.0], "sftm", params)
    assert_all_close(merged(recipe), wanted, 5e-5)


def test_a_difference_beyond_half_precision(merged: Merged, models: Path) -> None:
    """60000 - (-60000) is infinite in fp16; in float32 it is a number like any other."""
    for name in ("base", "a"):
        save_task(models / f"half_{name}", models / "base", 3, 3, torch.float16)
    name = "vit.layernorm.bias"
    change_weights(models / "half_base" / "model.safetensors", lambda tensors: tensors[name].fill_(-60000))
    change_weights(models / "half_a" / "model.safetensors", lambda tensors: tensors[name].fill_(60000))
    found = merged(make_recipe(models / "half_base", [models / "half_a"], device="cpu"))
    assert found[name].dtype == torch.float16
    assert found[name].tolist() == [60000.0] * 16


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_output_types(merged: Merged, recipe_for: Callable, dtype: str) -> None:
    exact = merged(recipe_for("ab"))
    found = merged(recipe_for("ab", output={"dtype": dtype}))
    for name, tensor in found.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, exact[name].to(tensor.dtype))


def test_the_type_of_the_base_is_kept(merged: Merged, models: Path) -> None:
    save_task(models / "half", models / "base", 3, 3, torch.bfloat16)
    found = merged(make_recipe(models / "half", [models / "a"], device="cpu"))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", 70000.0), ("float8_e4m3fn", 500.0), ("float8_e4m3fn", 60000.0), ("float8_e5m2", 7e4)],
)
def test_values_that_do_not_fit_the_output_type_are_refused_with_their_count(
    merged: Merged, models: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: float
) -> None:
    """FAULTS B2: torch 2.13 saturates float8, so waiting for NaN would write 448 in silence."""

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["vit.layernorm.bias"][:4] = value

    change_weights(models / "a" / "model.safetensors", grow)
    recipe = make_recipe(models / "base", [models / "a"], output={"dtype": dtype}, device="cpu")
    said = f"{value:.3g}".replace("+", r"\+")
    sentence = rf"'layernorm\.bias': 4 merged values do not fit {dtype} \(largest {said}\)"
    with pytest.raises(NumericalError, match=sentence):
        merged(recipe)
    monkeypatch.setattr(run_module, "SPAN", 2)
    with pytest.raises(NumericalError, match=sentence):
        merged(recipe)


@pytest.mark.parametrize("where", ["base", "a"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_by_name_and_count(
    merged: Merged, models: Path, where: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "encoder.layer.1.output.dense.weight" if where == "base" else "vit.encoder.layer.1.output.dense.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][0, :5] = value

    change_weights(models / where / "model.safetensors", spoil)
    recipe = make_recipe(models / "base", [models / "a", models / "b"], device="cpu")
    sentence = f"{where}/model.safetensors: tensor '{name}' holds 5 values".replace(".", r"\.")
    with pytest.raises(NumericalError, match=sentence):
        merged(recipe)
    monkeypatch.setattr(run_module, "SPAN", 2)
    with pytest.raises(NumericalError, match=sentence):
        merged(dataclasses.replace(recipe, method="average", params=NoParams(), measure="none"))


def with_extras(models: Path) -> tuple[Path, Path]:
    """A base with tensors of its own (a float and an integer one) that no task holds."""

    def extend(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra.table"] = torch.tensor([1.0, 70000.0, -0.0])
        tensors["extra.positions"] = torch.arange(5)

    change_weights(models / "base" / "model.safetensors", extend)
    return models / "base", models / "a"


def test_tensors_of_the_base_alone_are_copied_byte_by_byte(merged: Merged, models: Path) -> None:
    base, task = with_extras(models)
    found = merged(make_recipe(base, [task], device="cpu"))
    assert (
        found["extra.table"].view(torch.int32).tolist() == torch.tensor([1.0, 70000.0, -0.0]).view(torch.int32).tolist()
    )
    assert torch.equal(found["extra.positions"], torch.arange(5))
    half = make_recipe(base, [task], device="cpu", output={"dtype": "float16"})
    with pytest.raises(NumericalError, match=r"'extra\.table': 1 merged values do not fit float16"):
        merged(half)


def test_a_copied_tensor_with_nan_is_refused_too(merged: Merged, models: Path) -> None:
    base, task = with_extras(models)
    change_weights(base / "model.safetensors", lambda tensors: tensors["extra.table"].fill_(math.nan))
    with pytest.raises(NumericalError, match=r"'extra\.table' holds 3 values"):
        merged(make_recipe(base, [task], device="cpu"))


def test_the_plan_says_what_happens_to_each_tensor_and_why(models: Path, session: Session) -> None:
    base, task = with_extras(models)
    plan = prepare(make_recipe(base, [task, models / "b"], device="cpu"), session)
    rules = {entry.name: (entry.role, entry.rule, entry.why) for entry in plan.entries}
    assert rules["encoder.layer.0.output.dense.weight"] == (Role.MATRIX, "method", "owned by Linear")
    assert rules["encoder.layer.0.output.dense.bias"] == (Role.BIAS, "average", "owned by Linear")
    assert rules["layernorm.weight"] == (Role.NORM, "average", "owned by LayerNorm")
    assert rules["embeddings.cls_token"] == (Role.EMBEDDING, "average", "owned by ViTEmbeddings")
    assert rules["extra.positions"][:2] == (Role.BUFFER, "copy")
    assert rules["extra.table"] == (Role.FIXED, "copy", "no task holds it, so it is copied from the base")
    heads = sum(t.n_bytes for name, t in plan.preflight.tasks[0].checkpoint.tensors.items() if "classifier" in name)
    heads += sum(t.n_bytes for name, t in plan.preflight.tasks[1].checkpoint.tensors.items() if "classifier" in name)
    assert plan.output_bytes == heads + sum(info.n_bytes for info in plan.preflight.base.tensors.values())
    assert all(cost.seconds > 0 and cost.memory_bytes > 0 for cost in plan.cost.entries)
    assert plan.peak_bytes > 0


def test_a_task_without_a_change_is_refused_before_anything(models: Path, session: Session) -> None:
    with pytest.raises(InputError, match="is the base itself"):
        prepare(make_recipe(models / "base", [models / "base"]), session)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("a device is there")
    assert resolve_device("auto") == torch.device("cpu")
    for device in ("cuda", "mps"):
        with pytest.raises(InputError, match=f"'{device}' is not available here"):
            resolve_device(device)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_out_of_memory_names_the_layer(
    merged: Merged, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def explode(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(run_module, "merge_layer", explode)
    with pytest.raises(ResourceError, match=r"Out of memory at '.*', which needs about .*B"):
        merged(recipe_for("a"))


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    merged: Merged, recipe_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(run_module, "merge_layer", explode)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        merged(recipe_for("a"))


def test_a_change_too_large_for_the_compute_type_names_its_tensor(merged: Merged, models: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    change_weights(models / "base" / "model.safetensors", lambda tensors: tensors[name].fill_(-3e38))
    change_weights(models / "a" / "model.safetensors", lambda tensors: tensors[f"vit.{name}"].fill_(3e38))
    with pytest.raises(NumericalError, match=name.replace(".", r"\.")):
        merged(make_recipe(models / "base", [models / "a"], device="cpu"))


def opposed(models: Path, tasks: list[str], session: Session) -> Plan:
    """`a`, others, and a task that undoes `a`."""
    base = load_file(models / "base" / "model.safetensors")

    def mirror(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in base.items():
            tensors[f"vit.{name}"] = 2 * tensor - tensors[f"vit.{name}"]

    import shutil

    shutil.copytree(models / "a", models / "mirror")
    change_weights(models / "mirror" / "model.safetensors", mirror)
    recipe = make_recipe(models / "base", [models / task for task in tasks], device="cpu")
    return prepare(recipe, session)


def test_opposed_tasks_give_the_base_and_a_warning_that_says_conflict(models: Path, session: Session) -> None:
    plan = opposed(models, ["a", "mirror"], session)
    base = arrays(models / "base")
    records = []
    for step in run(plan, session):
        records.extend(step.records)
        assert_close(step.tensor, base[step.entry.name], what=step.entry.name)
    said = findings(plan.task_names, records)
    assert any(sentence.startswith("Conflict: a and mirror oppose each other in") for sentence in said)


def test_a_conflict_in_a_layer_that_some_task_lacks_names_the_right_tasks(models: Path, session: Session) -> None:
    """Positions in a layer's figures count the tasks that hold it, not all tasks."""
    base, name = models / "base", "pooler.dense.weight"
    change_weights(base / "model.safetensors", lambda tensors: tensors.update({name: torch.zeros(16, 16)}))
    for task, sign in (("a", 1.0), ("mirror", -1.0)):
        if task == "mirror":
            save_task(models / task, base, 8, 3)
        change = {f"vit.{name}": sign * torch.eye(16)}
        change_weights(models / task / "model.safetensors", lambda tensors, change=change: tensors.update(change))
    recipe = make_recipe(base, [models / task for task in ("b", "a", "mirror")], device="cpu")
    plan = make_plan(recipe, open_inputs(recipe, session).require(), session)
    entry = next(entry for entry in plan.entries if entry.name == name)
    assert entry.sources == (None, f"vit.{name}", f"vit.{name}")
    records = [record for step in run(plan, session) for record in step.records]
    assert any("a and mirror oppose" in sentence for sentence in findings(plan.task_names, records))
    assert not any("b and" in sentence for sentence in findings(plan.task_names, records))


def solved(name: str, outcome: Outcome, residual: float, conflicts: tuple[Conflict, ...] = ()) -> TensorRecord:
    figures = Figures(solver=outcome.value, residual=residual, conflicts=conflicts)
    return TensorRecord(name, "matrix", "method", "", (2, 2), 0.0, figures)


def test_solves_that_were_stopped_or_are_inexact_are_said() -> None:
    direct, iterative, early = Outcome.DIRECT, Outcome.ITERATIVE, Outcome.STOPPED_EARLY
    opposed = (Conflict(0, 1, -0.9),)
    fine = [solved("x", direct, 1e-3), solved("y", iterative, 1e-5), solved("z", direct, 0.5, opposed)]
    assert [sentence[:9] for sentence in findings(("a", "b"), fine)] == ["Conflict:"]
    said = findings(("a", "b"), [*fine[:2], solved("p", early, 0.02), solved("q", early, 0.3, opposed)])
    assert "stopped early in 2 layers (largest residual 0.3, in q)" in said[-1] and len(said) == 2
    (said,) = findings(("a", "b"), [*fine[:2], solved("p", direct, 0.04)])
    assert "inexact in 1 layer (largest residual 0.04, in p), although no tasks oppose each other there" in said
    assert findings(("a", "b"), [TensorRecord("x", "matrix", "sum", "", (2,), 0.0, Figures())]) == ()


def test_a_merge_whose_solver_was_stopped_says_so(
    recipe_for: Callable[..., Any], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superposition, "MAX_ITERATIONS", 1)
    monkeypatch.setattr(superposition, "FALLBACK_MAX", 0)
    monkeypatch.setattr(superposition, "AUTO_DIRECT_MAX", 0)
    plan = prepare(recipe_for("ab"), session)
    records = [record for step in run(plan, session) for record in step.records]
    assert any("stopped early in" in sentence for sentence in findings(plan.task_names, records))


def test_weights_that_are_stored_transposed(merged: Merged, tmp_path: Path) -> None:
    """GPT-2 keeps its linear maps as in x out: they are superposed as out x in and put back as they were."""
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    for seed, name in enumerate(("base", "t")):
        torch.manual_seed(seed)
        GPT2Model(config).save_pretrained(tmp_path / name)
    found = merged(make_recipe(tmp_path / "base", [tmp_path / "t"], device="cpu"))
    for name, tensor in load_file(tmp_path / "t" / "model.safetensors").items():
        assert_close(found[name], tensor, 5e-6, what=name)


@pytest.mark.parametrize(
    ("params", "low", "high"),
    [({"calibration": 0.0, "rank": None}, 0, 1e-5), ({"scaling": 0.0}, 1, 1), ({"rank": 1}, 0.1, 1)],
)
def test_errors_measure_what_was_added_on_all_features(
    recipe_for: Callable[..., Any], session: Session, params: dict[str, Any], low: float, high: float
) -> None:
    """A merge that adds nothing keeps nothing, and one of rank one does not keep what it cut off."""
    plan = prepare(recipe_for(params=params), session)
    n_measured = 0
    for merged in run(plan, session):
        n_measured += bool(merged.records[0].figures.readout_errors)
        for error in merged.records[0].figures.readout_errors:
            assert low - 1e-6 <= error <= high + 1e-6
    assert n_measured == sum(entry.role is Role.MATRIX for entry in plan.entries)
