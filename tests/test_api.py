"""The same from Python: merge, inspect, check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sftm_app
from sftm_app import check, inspect, merge
from sftm_app.errors import CompatibilityError, InputError, OutputError, RecipeError
from sftm_app.methods.params import values_of
from sftm_app.methods.task_arithmetic import TaskArithmeticParams
from sftm_app.output.progress import Progress
from sftm_app.output.report import Report
from sftm_app.planning.recipe import load_recipe


def test_the_shape_of_the_documented_call(tiny_models: Path, tmp_path: Path) -> None:
    base, tasks = tiny_models / "base", [tiny_models / "a", str(tiny_models / "b")]
    report = merge(base, tasks, tmp_path / "out", method="sftm", scaling=1.0, rank=None, device="auto")
    assert isinstance(report, Report)
    assert set(report.readout_errors) == {"a", "b"}
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_options_reach_the_merge(tiny_models: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    tasks = [{"path": tiny_models / "a", "name": "x", "weight": 2.0}, {"path": tiny_models / "b"}]
    report = merge(
        tiny_models / "base", tasks, tmp_path / "out", "task_arithmetic", "cpu",
        dtype="float16", max_shard_size="6KB", progress=seen.append, scaling=0.4,
    )  # fmt: skip
    assert [(entry.name, entry.weight) for entry in report.inputs[1:]] == [("x", 2.0), ("b", 1.0)]
    assert report.method == "task_arithmetic"
    assert report.recipe["params"] == values_of(TaskArithmeticParams(scaling=0.4))
    assert len(seen) == len(report.tensors) + 1
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {t.dtype for shard in shards for t in load_file(shard).values()} == {torch.float16}


def test_tasks_as_a_mapping(tiny_models: Path, tmp_path: Path) -> None:
    tasks = {"left": tiny_models / "a", "right": tiny_models / "b"}
    report = merge(tiny_models / "base", tasks, tmp_path / "out", method="average")
    assert [entry.name for entry in report.inputs] == ["base", "left", "right"]
    assert check(tiny_models / "base", tasks).problems == ()


def test_relative_paths_are_those_of_the_caller_and_the_saved_recipe_knows_it(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").symlink_to(tiny_models)
    monkeypatch.chdir(tmp_path)
    merge("models/base", ["models/a"], "out", method="average")
    recipe = load_recipe(tmp_path / "out" / "sftm_recipe.yaml")
    assert recipe.base == str((tiny_models / "base").resolve())
    assert recipe.output.path == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": "nonsense"}, RecipeError),
        ({"scalling": 1.0}, RecipeError),
        ({"scaling": 3.0}, RecipeError),
        ({"dtype": "int4"}, RecipeError),
        ({"max_shard_size": "much"}, RecipeError),
        ({"device": "abacus"}, RecipeError),
    ],
)
def test_refused_before_anything(tiny_models: Path, tmp_path: Path, changes: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        merge(tiny_models / "base", [tiny_models / "a"], tmp_path / "x" / "out", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tasks", ["path/to/task", Path("path"), 3, None])
def test_a_single_path_is_no_list_of_tasks(tiny_models: Path, tmp_path: Path, tasks: Any) -> None:
    with pytest.raises(RecipeError, match="tasks: expected a list"):
        merge(tiny_models / "base", tasks, tmp_path / "out")


def test_no_tasks(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match="No task checkpoint is chosen"):
        merge(tiny_models / "base", [], tmp_path / "out")


def test_an_existing_output(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"):
        merge(tiny_models / "base", [tiny_models / "a"], tmp_path)


def test_an_error_in_the_callers_own_progress_leaves_nothing(tiny_models: Path, tmp_path: Path) -> None:
    def stop(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(tiny_models / "base", [tiny_models / "a"], tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_check_lists_problems_instead_of_raising(tiny_models: Path) -> None:
    assert check(tiny_models / "base", [tiny_models / "a", tiny_models / "b"]).problems == ()
    assert any("is the base itself" in problem for problem in check(tiny_models / "a", [tiny_models / "a"]).problems)


def test_inspect(tiny_models: Path) -> None:
    base, tasks = tiny_models / "base", [tiny_models / "a", tiny_models / "b"]
    assert len(inspect(base, tasks).layers) == 13
    one = inspect(base, tasks, layer="encoder.layer.0.output.dense")
    assert [row.layer.name for row in one.layers] == ["encoder.layer.0.output.dense.weight"]
    with pytest.raises(InputError, match="There is no layer"):
        inspect(base, tasks, layer="x")


def test_inspect_predicts_the_merge_that_is_asked_for(tiny_models: Path) -> None:
    tasks = [{"path": tiny_models / "a", "weight": 2.0}, {"path": tiny_models / "b"}]
    layer = "encoder.layer.0.output.dense"
    one = inspect(tiny_models / "base", tasks, layer, method="task_arithmetic", scaling=0.4)
    assert (one.settings.method, one.settings.params.scaling) == ("task_arithmetic", 0.4)
    assert one.settings.weights == (2.0, 1.0)
    assert one.layers[0].prediction.condition is None
    assert inspect(tiny_models / "base", tasks, layer, rank=3).layers[0].prediction.ranks == (3, 3)
    with pytest.raises(RecipeError, match="scalling"):
        inspect(tiny_models / "base", tasks, layer, scalling=0.4)


def test_what_the_package_offers() -> None:
    assert set(sftm_app.__all__) == {"__version__", "check", "extract", "inspect", "merge", "pick_scaling", "search"}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sftm_app.nonsense


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, sftm_app, sftm_app.cli; sftm_app.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
