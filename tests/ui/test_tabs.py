"""The handlers of the tabs, called as plain functions."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
import pytest
from tab_values import after, values_of
from tiny_checkpoints import change_config, change_weights

from sftm_app.errors import CheckpointError, InputError, JobError, OutputError, SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL
from sftm_app.jobs.events import Started
from sftm_app.jobs.folder import RunFolder, create_run
from sftm_app.jobs.status import RunStatus, status
from sftm_app.jobs.worker import work
from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.methods.settings import merge_settings
from sftm_app.planning.budget import is_over_budget
from sftm_app.planning.recipe import Recipe, make_recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.ui import loading
from sftm_app.ui.evaluate import answers
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging import recipe_view, run_panel, run_view, saving
from sftm_app.ui.merging.form import recipe_of
from sftm_app.ui.merging.run_panel import RunPanel
from sftm_app.ui.merging.tab import MergeTab
from sftm_app.ui.models import tab as models_tab
from sftm_app.ui.studio import Studio
from sftm_app.ui.wording import params_in_words
from sftm_app.ui.workspace import Workspace, restore

pytestmark = pytest.mark.usefixtures("no_server")


def default_recipe(ws: Workspace) -> Any:
    return recipe_of(ws, merge_settings("sftm", {}, ws.weights), device="cpu")


def run_here(studio: Studio, recipe: Any) -> RunFolder:
    """A run carried out in this process; tests/jobs covers the worker process."""
    folder = create_run(studio.settings.runs_dir, recipe)
    folder.append(Started.by(psutil.Process()))
    work(folder, studio.session)
    return folder


@pytest.fixture
def panel(studio: Studio) -> RunPanel:
    with gr.Blocks():
        made = RunPanel(studio)
        made.lay_out_buttons()
        made.lay_out()
    return made


@pytest.fixture
def finished(studio: Studio, workspace: Workspace) -> RunFolder:
    folder = run_here(studio, default_recipe(workspace))
    assert status(folder).state == "done", status(folder)
    return folder


# Models


def test_the_demo_is_loaded_and_remembered(studio: Studio) -> None:
    loaded = loading.remember(studio, loading.pack_workspace(studio.packs[0]))
    assert loaded.task_names == ("a", "b", "c")
    assert restore(studio.settings.output_dir) == loaded
    shown = models_tab.preflight_html(studio, loaded)
    assert "3 tasks fit the base" in shown and "label 0 of a" in shown


def test_own_checkpoints_are_loaded_by_path(studio: Studio) -> None:
    loaded = loading.load_own(studio, "base", ["a", str(studio.settings.models_dir / "b")])
    assert loaded.task_names == ("a", "b")


def truncate(models: Path) -> None:
    file = models / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty_the_folder(models: Path) -> None:
    shutil.rmtree(models / "a")
    (models / "a").mkdir()


def other_architecture(models: Path) -> None:
    change_config(models / "a", model_type="gpt2", architectures=["GPT2Model"])


def equal_to_base(models: Path) -> None:
    shutil.rmtree(models / "a")
    shutil.copytree(models / "base", models / "a")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "is cut off"),
        (empty_the_folder, "has no config.json"),
        (other_architecture, "'gpt2' model, the base is a 'vit' model"),
        (equal_to_base, "equals the base's"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_loads_nothing(studio: Studio, damage: Any, sentence: str) -> None:
    damage(studio.settings.models_dir)
    with pytest.raises(SFTMError, match=sentence) as caught:
        loading.load_own(studio, "base", ["a", "b"])
    shown = models_tab.refused(caught.value)
    assert "sf-notice-error" in shown and "Traceback" not in shown
    assert restore(studio.settings.output_dir) == Workspace()


def test_nothing_picked_is_said(studio: Studio) -> None:
    with pytest.raises(InputError, match="No path is given"):
        loading.load_own(studio, "", [])
    with pytest.raises(InputError) as caught:
        loading.load_own(studio, "/nowhere", ["a", "/elsewhere"])
    assert len(str(caught.value).split("\n")) == 2, "all that is wrong is said at once"
    with pytest.raises(InputError) as caught:
        loading.load_own(studio, "none", ["a", "missing"])
    assert len(str(caught.value).split("\n")) == 2
    with pytest.raises(CheckpointError, match="No task is picked"):
        loading.load_own(studio, "base", [])


def test_names_from_files_are_shown_as_text(studio: Studio) -> None:
    labels = {"0": "<script>alert(1)</script>", "1": "b", "2": "c"}
    change_config(studio.settings.models_dir / "a", id2label=labels)
    shown = models_tab.preflight_html(studio, loading.load_own(studio, "base", ["a"]))
    assert "<script>" not in shown and "&lt;script&gt;" in shown


# Merge


def test_controls_follow_from_the_declarations() -> None:
    with gr.Blocks():
        state = gr.State(Workspace())
        form = ParamsForm(state)
    first = {**values_of(form, form.inputs), state: Workspace()}
    assert form.read(first, [1.0]) == merge_settings(Recipe.method, {}, [1.0])
    for name, method in METHODS.items():
        shown = form.follow(first | {form.method: name})
        visible = {c.elem_id: u for c, u in shown.items() if isinstance(u, dict) and u.get("visible") and "label" in u}
        labels = [update["label"] for name, update in visible.items() if not name.endswith("-amount")]
        unused = method.params().unused()
        assert sorted(labels) == sorted(c.label for name, c in controls(method.params).items() if name not in unused)
        assert form.read(after(first, shown), [1.0]) == merge_settings(name, {}, [1.0])
        assert form.hide_unused(after(first, shown)).keys() <= form.inputs
    for name, params in (("sftm", {"variant": "mapping", "scaling": 0.5}), ("ties", {"density": 0.4, "depth": 0.5})):
        asked = merge_settings(name, params, [1.0])
        assert form.read(after(first, form.write(asked)), [1.0]) == asked


def test_controls_that_do_nothing_are_hidden() -> None:
    with gr.Blocks():
        form = ParamsForm(gr.State(Workspace()))
    by_id = {component.elem_id: component for component in form.inputs}
    values = values_of(form, form.inputs)
    for variant, seen in (("minimum_variance", True), ("readout", False)):
        shown = form.hide_unused(values | {by_id["variant"]: variant})
        assert all(shown[by_id[name]]["visible"] == seen for name in ("loading", "sides", "calibration"))
        assert all(shown[by_id[name]]["visible"] for name in ("variant", "rank-by", "scaling", "depth"))
        written = form.write(merge_settings("sftm", {"variant": variant}, [1.0]))
        assert written[by_id["loading"]]["visible"] == seen and written[by_id["loading"]]["value"] == 3.0
    assert form.hide_unused(values | {by_id["variant"]: "no such variant"}) == {}


def test_the_recipe_of_the_controls(workspace: Workspace) -> None:
    settings = merge_settings("sftm", {"variant": "readout", "rank": "25%", "scaling": 0.5}, [1.0, 0.5, 2.0])
    output = {"dtype": "float16", "max_shard_size": "1MB"}
    recipe = recipe_of(workspace, settings, memory="2GB", device="cpu", split_fused=True, output=output)
    assert (recipe.output.dtype, recipe.output.max_shard_size, recipe.split_fused) == ("float16", "1MB", True)
    assert (recipe.params.rank, recipe.params.scaling, recipe.memory) == (0.25, 0.5, "2GB")
    assert [task.weight for task in recipe.tasks] == [1.0, 0.5, 2.0]
    link = recipe_view.download_html(recipe_to_yaml(recipe))
    downloaded = base64.b64decode(link.partition("base64,")[2].partition('"')[0]).decode()
    assert recipe_from_yaml(downloaded) == recipe
    assert "sftm_app merge" in recipe_view.command_html()


def test_the_plan_says_what_happens_to_what(studio: Studio, workspace: Workspace) -> None:
    shown = recipe_view.plan_html(studio.plan(workspace, default_recipe(workspace)))
    assert "cannot start" not in shown
    for word in ("merged by SFTM", "averaged", "one file per task", "owned by LayerNorm", "on cpu"):
        assert word in shown
    recipe = recipe_of(workspace, merge_settings("task_arithmetic", {}, workspace.weights))
    assert "summed" in recipe_view.plan_html(studio.plan(workspace, recipe))


def test_a_plan_over_its_budget_says_so_and_cannot_start(studio: Studio, workspace: Workspace) -> None:
    recipe = default_recipe(workspace)
    for memory, over, said in (
        ("1KB", True, "more than the budget of 1 kB"),
        ("4GB", False, "fits the budget of 4 GB"),
    ):
        plan = studio.plan(workspace, replace(recipe, memory=memory))
        shown = recipe_view.plan_html(plan)
        assert is_over_budget(plan) == over == ("cannot start" in shown) and said in shown


def test_a_finished_run_is_shown_saved_and_offered(
    studio: Studio, workspace: Workspace, finished: RunFolder, panel: RunPanel
) -> None:
    run_id = finished.run_id
    assert panel.open_latest(workspace)[panel.run_id] == run_id
    shown = panel.show(run_id)
    assert set(shown) == panel.views
    assert not shown[panel.resume]["visible"], "a run that is done needs no resuming"
    assert "All" in shown[panel.progress] and shown[panel.chart]["visible"] and shown[panel.save_box]["visible"]
    assert not shown[panel.active] and not shown[panel.cancel]["interactive"]
    assert shown[panel.runs]["value"] == run_id and "done" in shown[panel.runs]["choices"][0][0]
    words = ", ".join(params_in_words(METHODS["sftm"].params()))
    for said in ("Merged a, b and c (base", words):
        assert said in shown[panel.result]
    assert shown[panel.details]["visible"] and not panel.details.open
    for said in ("Readout error", "Mapping error", "Neither says how accurate"):
        assert said in shown[panel.errors] and said not in shown[panel.result]

    target = saving.save_run(studio, run_id, "my model")
    assert (target / "model.safetensors").is_file() and (target / "heads" / "a.safetensors").is_file()
    with pytest.raises(OutputError, match="exists already"):
        saving.save_run(studio, run_id, "my model")
    offered = [candidate.title for candidate in answers.candidates(studio, workspace)]
    assert offered[-1] == "Your merge: SFTM"


def test_runs_are_listed_by_their_settings_and_models(studio: Studio, workspace: Workspace) -> None:
    recipe = default_recipe(workspace)
    other = make_recipe("base", ["a", "b"], "task_arithmetic", {"scaling": 1.0})
    oldest = [create_run(studio.settings.runs_dir, one) for one in (recipe, other, recipe)]
    (oldest[1].path / "recipe.yaml").write_text("{")
    broken = create_run(studio.settings.runs_dir, other)
    labels = run_view.run_labels(studio, [broken, *oldest[::-1]])
    assert list(labels) == [run.run_id for run in (broken, *oldest[::-1])]
    assert list(labels.values()) == [
        "Task arithmetic, scaling 1 · base, 2 tasks · starting",
        "SFTM (2) · tiny, 3 tasks · starting",
        "unreadable recipe · starting",
        "SFTM · tiny, 3 tasks · starting",
    ]


@pytest.mark.parametrize("name", ["a\tb", "..", ".hidden", "a/b", "../x", "a\\b", "a\0b"])
def test_a_name_that_is_no_folder_name_is_refused(studio: Studio, finished: RunFolder, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be a folder name"):
        saving.save_run(studio, finished.run_id, name)


def test_only_finished_runs_are_saved(studio: Studio) -> None:
    with pytest.raises(JobError, match="No merge is chosen"):
        saving.save_run(studio, "", "x")
    with pytest.raises(JobError, match="no run"):
        saving.save_run(studio, "../..", "x")


def test_a_recipe_file_cannot_lead_outside(studio: Studio, workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    recipe = default_recipe(workspace)
    file.write_text(recipe_to_yaml(recipe))
    loaded, again = recipe_view.open_recipe(studio, file)
    assert loaded.inputs == workspace.inputs and again == recipe
    file.write_text("base: base\ntasks: [a, b]\n")
    assert recipe_view.open_recipe(studio, file)[0].task_names == ("a", "b"), "paths start at the models folder"
    file.write_text(recipe_to_yaml(replace(recipe, base="/etc")))
    with pytest.raises(InputError, match="outside"):
        recipe_view.open_recipe(studio, file)


# Evaluate


def test_a_new_merge_takes_the_place_of_the_one_in_memory(
    studio: Studio, workspace: Workspace, finished: RunFolder
) -> None:
    merge = f"folder:{finished.model}"
    first = answers.first_offer(studio, workspace)
    assert merge in first.ticked and merge in first.keys
    before = [key for key in first.keys if key != merge]
    offer = answers.next_offer(studio, workspace, ["base", "method:sftm"], before)
    assert offer.ticked == ("base", merge)
    offer = answers.next_offer(studio, workspace, ["base"], first.keys)
    assert offer.ticked == ("base",), "what the person unticked stays so"


def test_a_run_of_other_inputs_is_not_offered(studio: Studio, workspace: Workspace, finished: RunFolder) -> None:
    other = Workspace(workspace.base, workspace.tasks[:2])
    assert not [c for c in answers.candidates(studio, other) if c.key.startswith("folder:")]


def test_nan_in_a_weight_fails_the_run_with_a_sentence(studio: Studio, panel: RunPanel) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["vit.encoder.layer.1.output.dense.weight"][0, :2] = float("nan")

    change_weights(studio.settings.models_dir / "a" / "model.safetensors", spoil)
    own = loading.load_own(studio, "base", ["a", "b"])
    folder = run_here(studio, default_recipe(own))
    shown = panel.show(folder.run_id)[panel.progress]
    assert "layer.1.output.dense.weight" in shown and "holds 2 values that are NaN" in shown
    assert not list(folder.path.glob("model*"))
    assert json.loads((folder.path / "events.jsonl").read_text().splitlines()[-1])["kind"] == "failed"


@pytest.mark.parametrize(
    ("remaining_s", "said"), [(None, "3 of 9<"), (0.2, "3 of 9 · under 1 s left"), (400.0, "3 of 9 · about 7 min left")]
)
def test_the_time_left_is_said_in_the_plans_words_once_it_is_known(remaining_s: float | None, said: str) -> None:
    shown = run_view.progress_html(RunStatus("r", "running", 0.3, 3, 9, "t", 1.0, remaining_s))
    assert said in shown and (remaining_s is not None or "left" not in shown)


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_a_stopped_run_left_is_said_and_offered(state: str) -> None:
    kept = run_view.progress_html(RunStatus("r", state, message="Changed.", resumable=True))
    gone = run_view.progress_html(RunStatus("r", state, message="Changed."))
    assert "inished tensors are kept" in kept and "nothing was written" in gone.lower()


def test_a_run_that_can_be_resumed_has_its_button(
    panel: RunPanel, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for resumable in (False, True):
        died = RunStatus(finished.run_id, "died", message="Gone.", resumable=resumable)
        monkeypatch.setattr(run_panel, "status", lambda folder, died=died: died)
        assert panel.show(finished.run_id)[panel.resume]["visible"] == resumable


def test_a_run_of_other_checkpoints_is_not_shown_nor_named_for_them(
    studio: Studio, panel: RunPanel, finished: RunFolder
) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    assert panel.open_latest(own)[panel.run_id] == ""
    assert saving.default_save_name(studio, finished.run_id) == "tiny-merged"
    assert panel.open(finished.run_id)[panel.name] == "tiny-merged"


@pytest.mark.parametrize("damage", ["recipe.yaml", "model/sftm_report.json", "."])
def test_a_damaged_run_is_said_once_and_stops_nothing(
    studio: Studio, workspace: Workspace, finished: RunFolder, panel: RunPanel, damage: str
) -> None:
    target = finished.path / damage
    shutil.rmtree(target) if target.is_dir() else target.write_text("{")
    shown = panel.show(finished.run_id)
    assert not shown[panel.timer].active, "the timer must not repeat it"
    assert answers.candidates(studio, workspace)[:2] == [BASE, INDIVIDUAL]


def test_a_replaced_file_is_noticed_whatever_its_date(studio: Studio, workspace: Workspace) -> None:
    own = loading.load_own(studio, "base", ["a", "b"])
    first = studio.preflight(own)
    assert studio.preflight(own) is first
    file = studio.settings.models_dir / "a" / "model.safetensors"
    other = file.with_name("other")
    other.write_bytes((studio.settings.models_dir / "b" / "config.json").read_bytes())
    shutil.copyfile(file, other)
    os.utime(other, (1, 1))
    other.replace(file)
    assert studio.preflight(own) is not first
    assert loading.load_own(studio, "base", ["a", "b"]) != own, "loading again must be seen as a change"


def test_an_outdated_map_stops_drawing(studio: Studio) -> None:
    first = studio.latest_request("page map")
    assert first()
    second, other = studio.latest_request("page map"), studio.latest_request("another page map")
    assert not first() and second() and other()


def test_refusals_say_what_is_still_loaded(studio: Studio, workspace: Workspace) -> None:
    shown = models_tab.refused(InputError("No."), workspace)
    assert "still loaded" in shown and "base with a, b, c" in shown


def test_a_name_is_asked_for(studio: Studio, finished: RunFolder) -> None:
    with pytest.raises(OutputError, match="no name yet"):
        saving.save_run(studio, finished.run_id, "  ")


# The Merge tab as a whole


@pytest.fixture
def merge_tab(studio: Studio) -> MergeTab:
    with gr.Blocks():
        return MergeTab(studio, gr.State(Workspace()), Parts(studio.keeper))


def test_one_change_of_a_control_makes_one_plan(
    studio: Studio, workspace: Workspace, merge_tab: MergeTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    plan = studio.plan
    monkeypatch.setattr(studio, "plan", lambda ws, recipe: plans.append(recipe) or plan(ws, recipe))
    values = values_of(merge_tab.form, merge_tab.inputs, workspace=workspace) | {merge_tab.planned: ""}
    shown = merge_tab.preview(values)
    assert len(plans) == 1 and shown[merge_tab.ready] and set(shown) == merge_tab.previewed
    assert recipe_from_yaml(shown[merge_tab.recipe.recipe]) == plans[0]
    assert merge_tab.preview(values | {merge_tab.planned: shown[merge_tab.planned]}) == {} and len(plans) == 1
    # Start plans nothing: its worker does.
    started: list[Any] = []
    monkeypatch.setattr(merge_tab.run, "start", lambda recipe: started.append(recipe) or {merge_tab.run.run_id: "x"})
    merge_tab.begin(values)
    assert studio.keeper.get(workspace, "run") == "x", "a reload shows this run, even if the merge has ended by then"
    assert started == plans


def test_settings_that_do_not_work_leave_the_recipe_as_it_was(workspace: Workspace, merge_tab: MergeTab) -> None:
    values = values_of(merge_tab.form, merge_tab.inputs, workspace=workspace, memory="lots")
    shown = merge_tab.preview(values)
    assert set(shown) == {merge_tab.plan, merge_tab.ready, merge_tab.planned}
    assert not shown[merge_tab.ready] and "do not work" in shown[merge_tab.plan]


def test_a_recipe_is_shown_by_the_controls_as_it_is(studio: Studio, merge_tab: MergeTab, tmp_path: Path) -> None:
    made = make_recipe(
        "base",
        [{"path": "a", "weight": 0.5}, "b"],
        "sftm",
        {"rank": "25%"},
        {"kind": "adapter", "rank": 8, "energy": 0.5},
        "cpu",
        {"*.bias": "norm"},
        split_fused=True,
        memory="4GB",
        measure="all",
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_to_yaml(made))
    loaded = merge_tab.recipe.use({merge_tab.recipe.upload: str(file)})
    shown = loaded | merge_tab.open_workspace(loaded)
    again = merge_tab.form.read(after(values_of(merge_tab, merge_tab.inputs), shown))
    root = studio.settings.models_dir
    assert again == replace(made, base=str(root / "base"), tasks=again.tasks)
    assert [(task.path, task.name, task.weight) for task in again.tasks] == [
        (str(root / "a"), "a", 0.5),
        (str(root / "b"), "b", 1.0),
    ]
