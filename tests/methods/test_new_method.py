"""Methods that are defined here and nowhere else do everything that the methods of the table do.

One line puts each of them into the table, as in `sftm_app.methods`. Three kinds: element by element, from features, and
from whole tensors.

pytestmark = pytest.mark.usefixtures("no_server")
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from closeness import assert_close
from numpy.typing import NDArray
from safetensors.torch import load_file
from tab_values import after
from torch import Tensor
from transformers import ViTImageProcessor

from sftm_app import cli
from sftm_app.api import check, inspect, merge
from sftm_app.engine import run as run_module
from sftm_app.errors import RecipeError
from sftm_app.evaluation.candidates import BASE, ModelPool, folder_candidate, method_candidate
from sftm_app.inspection.factors import factorise_layer
from sftm_app.inspection.layers import map_layers
from sftm_app.inspection.survey import find_layer
from sftm_app.inspection.what_if import WhatIf
from sftm_app.jobs.folder import create_run
from sftm_app.jobs.worker import work
from sftm_app.linalg.factors import Rank
from sftm_app.linalg.low_rank import dense
from sftm_app.linalg.workspace import LayerSize, factorise_bytes
from sftm_app.methods import METHODS
from sftm_app.methods.base import Layer, Merged, Method
from sftm_app.methods.params import CommonParams, choice, controls, number, rank
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.output.report import Report, load_report
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.planner import open_inputs
from sftm_app.planning.recipe import recipe_from_yaml, recipe_to_yaml
from sftm_app.session import Session
from sftm_app.ui import loading
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.inspect.panels import Panels
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.inspect.tab import InspectTab
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging import run_view
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.settings import Settings
from sftm_app.ui.studio import Studio
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.checkpoint import open_checkpoint

Array = NDArray[np.float64]
LAYER = "encoder.layer.1.intermediate.dense.weight"
PREFIX = "vit."


# --- A method that works element by element ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipParams(CommonParams):
    """Parameters of clipping."""

    centre: str = choice("mean", "Centre", "What is taken of the tasks' changes.", choices=("mean", "median"))
    limit: float = number(0.05, "Limit", "No entry changes by more than this.", minimum=0.01, maximum=1.0)
    scaling: float = number(1.0, "Scaling", "How strongly the result is added.", minimum=0.0, maximum=2.0)


def clip(layer: Layer, params: ClipParams) -> Tensor:
    """Take the mean or median of the tasks' changes, and limit it."""
    stack = torch.stack([dense(D) for D in layer.task_matrices])
    middle = stack.mean(0) if params.centre == "mean" else stack.median(0).values
    return middle.clamp(-params.limit, params.limit) * params.scaling


def clip_directly(changes: list[Array], centre: str, limit: float, scaling: float) -> Array:
    middle = np.mean(changes, 0) if centre == "mean" else np.median(changes, 0)
    return scaling * np.clip(middle, -limit, limit)


# --- A method that needs singular features ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ShrinkParams:
    """Parameters of shrinking."""

    combine: str = choice("sum", "Combine", "Whether to add up or to average.", choices=("sum", "mean"))
    share: float = number(0.25, "Share", "This share of the largest gain is taken off every gain.", 0.0, 1.0)
    rank: Rank = rank("Rank", "How many features to keep per task and layer.")
    scaling: float = number(1.0, "Scaling", "How strongly the result is added.", minimum=0.0, maximum=2.0)


def shrink(layer: Layer, params: ShrinkParams) -> Merged:
    """Add up the tasks' leading features, each gain shrunk."""
    total = layer.base() * 0
    for features, weight in zip(layer.features(), layer.weights, strict=True):
        f = features.factors.cut(params.rank)
        if f.rank:
            total += weight * (f.U * (f.S - params.share * f.S[0]).relu()) @ f.Vh
    return Merged(total * (params.scaling / (sum(layer.weights) if params.combine == "mean" else 1.0)))


def shrink_directly(changes: list[Array], combine: str, share: float, rank: int, scaling: float) -> Array:
    total = np.zeros_like(changes[0])
    for D in changes:
        U, s, Vh = np.linalg.svd(D, full_matrices=False)
        total += (U[:, :rank] * np.maximum(s[:rank] - share * s[0], 0)) @ Vh[:rank]
    return scaling * total / (len(changes) if combine == "mean" else 1)


def shrink_rank(params: ShrinkParams) -> Rank:
    return params.rank


def shrink_workspace(size: LayerSize, params: ShrinkParams) -> int:
    return factorise_bytes(size, size.computed(params.rank)) + 3 * size.matrix_bytes


# --- A method that needs the whole tensor, of any role ----------------------------------------------------------------


@dataclass(frozen=True)
class PeakParams:
    """Parameters of peaks."""

    of: str = choice("largest", "Of", "The peak that all tasks get.", choices=("largest", "smallest"))
    power: float = number(1.0, "Power", "The exponent of every entry's share of the peak.", minimum=0.5, maximum=2.0)
    scaling: float = number(1.0, "Scaling", "How strongly the result is added.", minimum=0.0, maximum=2.0)


WHOLE: set[tuple[int, ...]] = set()


def peak(layer: Layer, params: PeakParams) -> Tensor:
    """Give every task the same peak. A piece of a tensor has another one."""
    matrices = [dense(D) for D in layer.task_matrices]
    for D in matrices:
        assert tuple(D.shape) in WHOLE, f"a piece: {tuple(D.shape)}"
    peaks = [float(D.abs().max()) for D in matrices]
    top = max(peaks) if params.of == "largest" else min(peaks)
    parts = [D.sign() * (D.abs() / p) ** params.power * top for D, p in zip(matrices, peaks, strict=True)]
    return torch.stack(parts).mean(0) * params.scaling


def peak_directly(changes: list[Array], of: str, power: float, scaling: float) -> Array:
    peaks = [np.abs(D).max() for D in changes]
    top = max(peaks) if of == "largest" else min(peaks)
    parts = [np.sign(D) * (np.abs(D) / p) ** power * top for D, p in zip(changes, peaks, strict=True)]
    return scaling * np.mean(parts, 0)


# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method, values for its params that are not the defaults, and its formula on float64 arrays."""

    method: Method
    values: dict[str, Any]
    directly: Callable[..., Array]


CASES = [
    Case(
        Method(
            name="clip",
            title="Clipping",
            summary="The middle of the tasks' changes, limited.",
            reference="Nobody, Nowhere, 2026",
            params=ClipParams,
            merge=clip,
            elementwise=True,
            roles={"embedding": "method", "bias": "method", "norm": "average"},
        ),
        {"centre": "median", "limit": 0.04, "scaling": 0.7},
        clip_directly,
    ),
    Case(
        Method(
            name="shrink",
            title="Shrinking",
            summary="The tasks' features with smaller gains.",
            reference="Nobody, Nowhere, 2026",
            params=ShrinkParams,
            merge=shrink,
            elementwise=False,
            roles={"embedding": "sum", "bias": "sum", "norm": "average"},
            workspace=shrink_workspace,
            features=shrink_rank,
        ),
        {"combine": "mean", "share": 0.1, "rank": 5, "scaling": 0.7},
        shrink_directly,
    ),
    Case(
        Method(
            name="peak",
            title="Peaks",
            summary="Every task with the same peak.",
            reference="Nobody, Nowhere, 2026",
            params=PeakParams,
            merge=peak,
            elementwise=False,
            roles={"embedding": "method", "bias": "method", "norm": "method"},
        ),
        {"of": "smallest", "power": 2.0, "scaling": 0.7},
        peak_directly,
    ),
]


@pytest.fixture(params=CASES, ids=[case.method.name for case in CASES])
def case(request: pytest.FixtureRequest, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A new method in the table. Elementwise ones get pieces of 37 elements."""
    found: Case = request.param
    monkeypatch.setitem(METHODS, found.method.name, found.method)
    monkeypatch.setattr(run_module, "SPAN", 37)
    shapes = [info.shape for info in open_checkpoint(tiny_models / "base").tensors.values()]
    WHOLE.update(shapes, {(shape[0], int(np.prod(shape[1:]))) for shape in shapes if len(shape) == 4})
    return found


def arrays(folder: Path) -> dict[str, Array]:
    """A model's tensors in float64, as out x in where they are maps."""
    found = {name.removeprefix(PREFIX): t for name, t in load_file(folder / "model.safetensors").items()}
    return {
        name: (t.flatten(1) if t.ndim == 4 else t).double().numpy()
        for name, t in found.items()
        if not name.startswith("classifier")
    }


def expected(models: Path, case: Case, roles: dict[str, str]) -> dict[str, Array]:
    """The model that the direct formulas give for tasks a, b and c. roles: by tensor."""
    base, tasks = arrays(models / "base"), [arrays(models / name) for name in "abc"]
    merged = {}
    for name, origin in base.items():
        changes = [task[name] - origin for task in tasks]
        rule = "method" if roles[name] == "matrix" else case.method.roles[roles[name]]
        if rule == "method":
            delta = case.directly(changes, **case.values)
        else:
            delta = np.mean(changes, 0) if rule == "average" else case.values["scaling"] * np.sum(changes, 0)
        merged[name] = origin + delta
    return merged


def errors_of(delta: Array, changes: list[Array]) -> tuple[list[float], list[float]]:
    """Readout and mapping error of every task, by their definitions."""
    readout, mapping = [], []
    for D in changes:
        U, s, Vh = np.linalg.svd(D, full_matrices=False)
        readout.append(float(np.linalg.norm(np.diag(U.T @ delta @ Vh.T) - s) / np.linalg.norm(s)))
        mapping.append(float(np.linalg.norm(delta @ Vh.T - U * s) / np.linalg.norm(s)))
    return readout, mapping


def check_model(models: Path, case: Case, folder: Path, report: Report) -> None:
    """Compare a merged model with the direct formulas, and its report with the errors' definitions."""
    roles = {record.name: record.role for record in report.tensors}
    wanted, found, base = expected(models, case, roles), arrays(folder), arrays(models / "base")
    assert set(found) == set(wanted)
    tasks = [arrays(models / name) for name in "abc"]
    for record in report.tensors:
        origin = base[record.name]
        assert_close(found[record.name] - origin, wanted[record.name] - origin, 1e-4, what=record.name)
        if record.role == "matrix":
            readout, mapping = errors_of(wanted[record.name] - origin, [task[record.name] - origin for task in tasks])
            assert_close(record.figures.readout_errors, readout, 1e-3, what=record.name)
            assert_close(record.figures.mapping_errors, mapping, 1e-3, what=record.name)
            average = errors_of(
                np.mean([task[record.name] - origin for task in tasks], 0),
                [task[record.name] - origin for task in tasks],
            )
            assert_close(record.figures.average_readout_errors, average[0], 1e-3, what=record.name)
        else:
            assert not record.figures.readout_errors
    assert list(report.readout_errors) == list(report.mapping_errors) == ["a", "b", "c"]


def test_the_example_of_the_documentation_merges(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?METHOD = .*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "dataclass": dataclass, "number": number}
    names |= {"CommonParams": CommonParams, "Layer": Layer, "Method": Method, "dense": dense, "__name__": __name__}
    exec(code, names)
    median: Method = names["METHOD"]
    monkeypatch.setitem(METHODS, median.name, median)
    tasks = [tiny_models / name for name in "abc"]
    merge(tiny_models / "base", tasks, tmp_path / "out", median.name, "cpu", scaling=0.5)
    base, found, *others = map(arrays, (tiny_models / "base", tmp_path / "out", *tasks))
    delta = 0.5 * np.median([task[LAYER] - base[LAYER] for task in others], 0)
    assert_close(found[LAYER] - base[LAYER], delta, 1e-4)


# Python and the command line


@pytest.fixture
def recipe_file(tiny_models: Path, tmp_path: Path, case: Case) -> Path:
    """A recipe over three tasks, with the case's values."""
    tasks = "".join(f"- {tiny_models / name}\n" for name in "abc")
    file = tmp_path / "recipe.yaml"
    values = json.dumps(case.values)
    file.write_text(
        f"base: {tiny_models / 'base'}\ntasks:\n{tasks}method: {case.method.name}\nparams: {values}\ndevice: cpu\n"
    )
    return file


@pytest.fixture
def sftm(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_python_and_the_command_line_merge_the_same(
    case: Case, tiny_models: Path, tmp_path: Path, recipe_file: Path, sftm: Any
) -> None:
    tasks = [tiny_models / name for name in "abc"]
    report = merge(tiny_models / "base", tasks, tmp_path / "python", case.method.name, "cpu", **case.values)
    check_model(tiny_models, case, tmp_path / "python", report)
    code, out, err = sftm("merge", recipe_file, "--output", tmp_path / "cli", "--quiet")
    assert (code, err) == (0, "") and f"Merged 3 tasks with {case.method.name} in" in out
    assert all(re.search(rf"^  {name}: readout error .+ \(median over layers\)", out, re.M) for name in "abc")
    one, other = (tmp_path / folder / "model.safetensors" for folder in ("python", "cli"))
    assert one.read_bytes() == other.read_bytes()
    assert load_report(tmp_path / "cli" / "sftm_report.json").readout_errors == report.readout_errors
    card = (tmp_path / "python" / "README.md").read_text()
    assert case.method.title in card and case.method.reference in card
    # Nothing is measured, so elementwise methods get pieces.
    report = merge(
        tiny_models / "base", tasks, tmp_path / "bare", case.method.name, "cpu", measure="none", **case.values
    )
    assert report.readout_errors == {}
    assert (tmp_path / "bare" / "model.safetensors").read_bytes() == one.read_bytes()


def test_params_are_checked_and_set_on_the_command_line(
    case: Case, tmp_path: Path, recipe_file: Path, sftm: Any
) -> None:
    recipe_file.write_text(re.sub("params: .*", "", recipe_file.read_text()))
    sets = [part for name, value in case.values.items() for part in ("--set", f"{name}={value}")]
    assert sftm("merge", recipe_file, "--output", tmp_path / "out", "--quiet", *sets)[0] == 0
    saved = recipe_from_yaml((tmp_path / "out" / "sftm_recipe.yaml").read_text())
    assert asdict(saved.params) == asdict(case.method.params()) | case.values
    assert recipe_from_yaml(recipe_to_yaml(saved)) == saved
    code, _, err = sftm("check", recipe_file, "--set", "scalling=1")
    assert code == 2 and "'scalling' is not known. Did you mean 'scaling'?" in err
    code, _, err = sftm("check", recipe_file, "--set", "scaling=3")
    assert code == 2 and "outside -2 to 2" in err
    code, _, err = sftm("check", recipe_file, "--method", case.method.name[:-1] + "x")
    assert code == 2 and f"Did you mean '{case.method.name}'?" in err


def test_check_says_what_it_takes(case: Case, recipe_file: Path, sftm: Any, tiny_models: Path) -> None:
    code, out, err = sftm("check", recipe_file)
    assert (code, err) == (0, "") and "3 tasks fit the base" in out
    assert re.search(r"The merge takes (under 1 s|about \d+ \w+) and .*B of memory", out)
    assert check(tiny_models / "base", [tiny_models / "a"]).problems == ()


def test_inspect_predicts_what_the_merge_then_does(
    case: Case, tiny_models: Path, tmp_path: Path, recipe_file: Path, sftm: Any
) -> None:
    tasks = [tiny_models / name for name in "abc"]
    report = merge(tiny_models / "base", tasks, tmp_path / "out", case.method.name, "cpu", **case.values)
    merged = {record.name: record.figures for record in report.tensors}
    found = inspect(tiny_models / "base", tasks, method=case.method.name, **case.values)
    assert len(found.layers) == 13 and found.settings.method == case.method.name
    for one in found.layers:
        assert_close(one.prediction.readout_errors, merged[one.layer.name].readout_errors, 1e-4)
        assert_close(one.prediction.mapping_errors, merged[one.layer.name].mapping_errors, 1e-4)
    (one,) = inspect(tiny_models / "base", tasks, LAYER, case.method.name, **case.values).layers
    assert one.layer.name == LAYER and one.prediction.coefficients is None
    code, out, _ = sftm("inspect", recipe_file, "--json", "--layer", LAYER)
    (layer,) = json.loads(out)["layers"]
    assert code == 0 and list(layer["prediction"]["readout_errors"]) == ["a", "b", "c"]
    assert_close(list(layer["prediction"]["readout_errors"].values()), merged[LAYER].readout_errors, 1e-4)
    assert sftm("inspect", recipe_file)[0] == 0


def test_what_if_follows_every_param(case: Case, recipe_for: Callable[..., Any], session: Session) -> None:
    found = open_inputs(recipe_for(), session).require()
    layer = find_layer(map_layers(found), LAYER)
    what_if = WhatIf(factorise_layer(found, layer))

    def predict(**values: Any) -> Any:
        return what_if.predict(merge_settings(case.method.name, values, (1.0, 1.0, 1.0)))

    one, half, none = predict(), predict(scaling=0.5), predict(scaling=0.0)
    assert_close(half.norm, one.norm / 2)
    assert one.norm > 0 and none.norm == 0
    assert_close(none.readout_errors, (1.0, 1.0, 1.0))
    for name, value in case.values.items():
        assert predict(**{name: value}).readout_errors != one.readout_errors, name
    assert_close(what_if.spectrum(half), np.array(what_if.spectrum(one)) / 2)
    with pytest.raises(RecipeError):
        predict(scaling=3.0)


# The engine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_a_killed_merge_is_resumed_with_the_same_bytes(
    case: Case, recipe_for: Callable[..., Any], session: Session, tmp_path: Path
) -> None:
    plan = prepare(recipe_for(method=case.method.name, params=case.values), session)
    report = finished(save(plan, session, tmp_path / "whole"))
    child = os.fork()
    if child == 0:
        try:
            for done, _ in enumerate(save(plan, session, tmp_path / "out"), start=1):
                if done == 20:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = finished(save(plan, session, tmp_path / "out", resume=True))
    assert resumed.machine.resumed_after_tensors == 20
    one, other = (tmp_path / folder / "model.safetensors" for folder in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()
    assert [record.figures for record in resumed.tensors] == [record.figures for record in report.tensors]


def finished(steps: Iterator[Any]) -> Report:
    """Run a merge to its end and return the report."""
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    report: Report = end.value.value
    return report


def test_the_result_can_be_an_adapter(case: Case, tiny_models: Path, tmp_path: Path) -> None:
    tasks = [tiny_models / name for name in "abc"]
    settings: dict[str, Any] = {"device": "cpu", "measure": "none", **case.values}
    full = merge(tiny_models / "base", tasks, tmp_path / "full", case.method.name, **settings)
    merge(tiny_models / "base", tasks, tmp_path / "lora", case.method.name, kind="adapter", adapter_rank=24, **settings)
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
    merge(tiny_models / "base", [tmp_path / "lora"], tmp_path / "again", "average", "cpu")
    base, wanted, found = (arrays(folder) for folder in (tiny_models / "base", tmp_path / "full", tmp_path / "again"))
    carried = [r.name for r in full.tensors if r.role == "matrix" and "patch_embeddings" not in r.name]
    assert len(carried) == 12
    for name in carried:
        assert_close(found[name] - base[name], wanted[name] - base[name], 1e-4, what=name)


def test_another_scaling_needs_no_second_merge_of_a_whole_layer(
    case: Case,
    recipe_for: Callable[..., Any],
    cached_session: Session,
    small_layers_cached: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged: list[int] = []

    def counted(layer: Layer, params: Any) -> Any:
        merged.append(layer.task_matrices[0].ndim)
        return case.method.merge(layer, params)

    monkeypatch.setitem(METHODS, case.method.name, replace(case.method, merge=counted))

    def run(name: str, session: Session, **changes: float) -> tuple[bytes, int, Report]:
        merged.clear()
        plan = prepare(recipe_for(method=case.method.name, params=case.values | changes), session)
        report = finished(save(plan, session, tmp_path / name))
        return (tmp_path / name / "model.safetensors").read_bytes(), merged.count(2), report

    uncached = replace(cached_session, cache=None)
    _, n_first, _ = run("first", cached_session)
    wanted, n_afresh, fresh = run("afresh", uncached, scaling=0.3)
    found, n_again, report = run("again", cached_session, scaling=0.3)
    assert found == wanted and n_first == n_afresh
    assert (n_again == 0) is (not case.method.elementwise)
    for record, other in zip(report.tensors, fresh.tensors, strict=True):
        assert record.figures.cached is (record.role == "matrix" and not case.method.elementwise)
        assert record.figures.readout_errors == other.figures.readout_errors


# The app


@pytest.fixture
def studio(case: Case, tiny_models: Path, tmp_path: Path, session: Session) -> Studio:
    for folder in ("output", "packs"):
        (tmp_path / folder).mkdir()
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(models / "base")
    return Studio(Settings(models, tmp_path / "output", tmp_path / "packs", "cpu"), session)


@pytest.fixture
def workspace(studio: Studio) -> Workspace:
    return loading.load_own(studio, "base", ["a", "b", "c"])


@pytest.fixture
def settings(case: Case, workspace: Workspace) -> MergeSettings:
    return merge_settings(case.method.name, case.values, workspace.weights)


def test_the_form_has_its_controls(case: Case, settings: MergeSettings) -> None:
    with gr.Blocks():
        form = ParamsForm(gr.State(Workspace()))
    assert (case.method.title, case.method.name) in form.method.choices
    updates = form.write(settings)
    visible = {str(c.elem_id): u for c, u in updates.items() if isinstance(u, dict) and u.get("visible")}
    for name, control in controls(case.method.params).items():
        labels = [update.get("label") for key, update in visible.items() if key.removesuffix("-by") == name]
        assert labels == [control.label], name
    values = after({component: component.value for component in form.inputs}, updates)
    assert form.read(values, settings.weights) == settings


def test_the_merge_tab_plans_runs_and_shows_it(
    case: Case, studio: Studio, workspace: Workspace, settings: MergeSettings, tiny_models: Path
) -> None:
    with gr.Blocks():
        tab = MergeTab(studio, gr.State(Workspace()), Parts(studio.keeper))
    inputs = {*tab.inputs, tab.planned}
    values = {component: component.value for component in inputs} | {tab.workspace: workspace}
    values = after(values, tab.form.write_settings(workspace, settings))
    shown = tab.preview(values)
    assert shown[tab.ready] is True
    recipe = recipe_from_yaml(shown[tab.recipe.recipe])
    assert (recipe.method, recipe.params) == (case.method.name, settings.params)
    assert f"merged by {case.method.title}" in shown[tab.plan]
    folder = create_run(studio.settings.runs_dir, replace(recipe, device="cpu"))
    work(folder, studio.session)
    report = studio.report(folder)
    check_model(tiny_models, case, folder.model, report)
    assert case.method.title in run_view.result_html(report)
    assert "Readout error" in run_view.errors_html(report)
    names = [str(trace.name) for trace in run_view.result_plot(report).data]
    assert any(case.method.title in name for name in names) and len(names) > 2
    assert case.method.title in run_view.run_labels(studio, [folder])[folder.run_id]


def test_the_inspect_tab_shows_it(case: Case, studio: Studio, workspace: Workspace, settings: MergeSettings) -> None:
    with gr.Blocks():
        tab = InspectTab(studio, gr.State(Workspace()), Parts(studio.keeper))
    panels: Panels = tab.panels
    state = InspectState(
        ws=workspace, settings=settings, measure="change", layer=LAYER, first="a", second="b", task="a", feature=0
    )
    layer = panels.layer.show_settled(state)
    assert any("merged" in str(trace.name) for trace in layer[panels.layer.spectra].data)
    shown = panels.what_if.show(state)
    assert "Worst readout error" in shown[panels.what_if.figures]
    assert any(case.method.title in str(trace.name) for trace in shown[panels.what_if.bars].data)
    predicted = state.look(studio).what_if.predict(settings)
    feature = panels.feature.show(state)
    assert "Feature 1 of a" in feature[panels.feature.figures]
    assert f"{float(predicted.readouts[0][0]):.3g}" in feature[panels.feature.figures]
    assert "feature" in feature[panels.feature.neighbours]
    for measure in ("readout_error", "mapping_error"):
        drawn = list(panels.map.draw(replace(state, measure=measure)))
        assert drawn


def test_the_evaluate_tab_tries_it(case: Case, studio: Studio, workspace: Workspace, tmp_path: Path) -> None:
    pool: ModelPool = studio.model_pool(workspace)
    candidate = method_candidate(case.method.name, case.values)
    assert candidate.title.startswith(f"{case.method.title} (")
    models = studio.settings.models_dir
    merge(models / "base", [models / name for name in "abc"], tmp_path / "out", case.method.name, "cpu", **case.values)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    for name in (LAYER, "layernorm.bias"):
        assert torch.equal(pool.tensor(candidate, "b", name), saved[name])
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    tried, base = (pool.model(one, "b").probabilities(images) for one in (candidate, BASE))
    on_disk = pool.model(folder_candidate(tmp_path / "out", "Saved", case.method.name), "b").probabilities(images)
    assert_close(tried, on_disk)
    assert np.abs(tried - base).max() > 1e-3
