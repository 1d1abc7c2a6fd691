"""Reports are read as they were written, also by the version before; anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftm_app.engine.records import Figures, TensorRecord
from sftm_app.errors import CheckpointError
from sftm_app.linalg.conflicts import Conflict
from sftm_app.output.report import Report, load_report
from sftm_app.output.resume import read_unfinished
from sftm_app.weights.partial import PROGRESS_NAME

OLD = Path(__file__).with_name("report_0_1_0.json")


@pytest.fixture
def old() -> Report:
    """A report that version 0.1.0 wrote: two opposed tasks, with one layer cached from an earlier merge."""
    return load_report(OLD)


def test_a_report_of_0_1_0_loads(old: Report) -> None:
    bias, weight = old.tensors
    assert bias.figures == Figures()
    assert weight.figures.cached and weight.figures.conflicts == (Conflict(0, 1, -1.0),)
    assert (weight.figures.n_dropped, weight.figures.ranks, weight.shape) == (4, (4, 4), (6, 4))
    assert old.readout_errors == {"a": pytest.approx(1.0, rel=1e-6), "b": pytest.approx(1.0, rel=1e-6)}
    assert old.average_mapping_errors.keys() == {"a", "b"}
    assert (old.machine.executor, old.machine.workers, old.machine.resumed_after_tensors) == ("local", 1, 0)
    assert "under 1 s expected" in old.time


def test_a_report_comes_back_as_it_was_written(old: Report, tmp_path: Path) -> None:
    figures = Figures((2,), residual=math.inf, condition=math.inf, conflicts=(Conflict(0, 1, -0.5),), tasks=("名前",))
    record = TensorRecord("x", "matrix", "method", "why", (2, 3), 0.1, figures)
    report = dataclasses.replace(old, tensors=(*old.tensors, record), heads={"a": ("head.weight",)})
    path = tmp_path / "report.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert load_report(path) == report
    plain = json.loads(report.to_json(), parse_constant=pytest.fail)  # JSON has no Infinity
    assert plain["tensors"][0]["figures"] == {} and plain["tensors"][-1]["figures"].keys() == {
        "ranks", "residual", "condition", "conflicts", "tasks",
    }  # fmt: skip
    assert plain["machine"].keys() == {field.name for field in dataclasses.fields(old.machine)} - {
        "resumed_after_tensors"
    }


def drop(*keys: str | int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


def put(new: Any, *keys: str | int) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = new

    return change


@pytest.mark.parametrize(
    "damage",
    [
        drop("tensors"), drop("machine", "device"), drop("tensors", 0, "figures"), drop("inputs", 0, "sha256"),
        put(1, "later"), put(1, "machine", "later"), put(1, "tensors", 0, "figures", "later"), put(1, "tensors"),
        put("many", "tensors", 1, "figures", "ranks"), put([[0, 1]], "tensors", 1, "figures", "conflicts"),
        put(None, "seconds"),
    ],
)  # fmt: skip
def test_a_report_of_another_version_is_refused(tmp_path: Path, damage: Callable[[Any], None]) -> None:
    value = json.loads(OLD.read_text(encoding="utf-8"))
    damage(value)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"report\.json: is not a report of this version of SFTM Studio"):
        load_report(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "0.1.0"}', "\0"])
def test_a_damaged_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"report\.json: "):
        load_report(path)
    with pytest.raises(CheckpointError, match=r"none\.json: "):
        load_report(tmp_path / "none.json")


def test_a_progress_file_of_0_1_0_is_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    records = json.loads(OLD.read_text(encoding="utf-8"))["tensors"][1:]
    line = {"name": "layer.weight", "checksum": 7, "records": records, "elapsed_s": 1.5, "peak_bytes": 9}
    lines = [json.dumps(value) + "\n" for value in ({"made_from": {"SFTM Studio": "0.1.0"}, "total": 2}, line)]
    (tmp_path / "out.partial" / PROGRESS_NAME).write_text("".join(lines), encoding="utf-8")
    left = read_unfinished(tmp_path / "out")
    assert left is not None and left.start.made_from == {"SFTM Studio": "0.1.0"}
    assert left.finished["layer.weight"].records[0].figures.cached
