"""The leaderboard: every merge with its scores, sorted, filtered, named, exported and deleted, over a restart."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from typing import Any

import pytest
from tab_values import after, values_of
from test_evaluate import open_tab
from test_merges import merge
from test_result_scores import finish

from sftm_app.errors import InputError, JobError
from sftm_app.evaluation.packs import load_samples
from sftm_app.output.publish import publish
from sftm_app.ui.evaluate.leaderboard import MEAN, NAME, SIZE, TIME, Order, arranged, leaderboard
from sftm_app.ui.evaluate.leaderboard_panel import LeaderboardPanel
from sftm_app.ui.evaluate.sources import Source
from sftm_app.ui.evaluate.tab import EvaluateTab
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import parse_selection
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")

SOURCE = Source(limit=12)


def link(*target: object) -> Any:
    return parse_selection({"x": None, "y": None, "customdata": list(target), "curve": 0})


def asked(tab: EvaluateTab, ws: Workspace, **changes: Any) -> dict[Any, Any]:
    """The values of everything that the leaderboard is given."""
    board = tab.board
    inputs = board.shown_with | {board.name, board.notes} | tab.table.inputs
    values = values_of(tab, inputs, workspace=ws, models=[], task="a", sample=None)
    values |= {tab.table.where: "", tab.table.limit: 12, tab.boxes.choices: ""}
    return values | {getattr(board, name): value for name, value in changes.items()}


def measure_all(tab: EvaluateTab, ws: Workspace) -> None:
    tab.board.measure_missing(asked(tab, ws))
    finish()


@pytest.fixture
def tab(studio: Studio) -> EvaluateTab:
    return open_tab(studio)


@pytest.fixture
def board(tab: EvaluateTab) -> LeaderboardPanel:
    return tab.board


def test_merges_without_scores_are_measured_and_listed_best_first(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel
) -> None:
    assert "No merges yet" in board.show(asked(tab, workspace))[board.board]
    runs = [merge(studio, workspace), merge(studio, workspace, "task_arithmetic", scaling=0.5)]
    first = board.show(asked(tab, workspace))
    assert "2 of 2 are not measured" in first[board.board] and first[board.measure]["visible"]
    measure_all(tab, workspace)
    shown = board.show(asked(tab, workspace))
    assert not shown[board.measure]["visible"] and "·" not in shown[board.board]
    found = leaderboard(studio, workspace, SOURCE)
    pool = studio.model_pool(workspace)
    for one in found.merges:
        for task in studio.packs[0].tasks:
            right = [a.correct for a in pool.model(one.candidate, task.name).answer(load_samples(task))]
            score = found.score(one, task.name)
            assert score is not None and score.value == pytest.approx(sum(map(bool, right)) / 12)
    means = [found.mean(one).value for one in arranged(found, Order(), "")]  # type: ignore[union-attr]
    assert means == sorted(means, reverse=True) and len(means) == len(runs)
    assert "of up to 12 samples per task" in shown[board.board]
    again = Studio(studio.settings, studio.session)
    assert leaderboard(again, workspace, SOURCE).unmeasured == ()
    assert len(leaderboard(again, workspace, Source(limit=5)).unmeasured) == 2, "other samples are other scores"


def test_columns_sort_and_words_filter(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel
) -> None:
    for scaling in (0.5, 0.7):
        merge(studio, workspace, "task_arithmetic", scaling=scaling)
    merge(studio, workspace)
    measure_all(tab, workspace)
    found = leaderboard(studio, workspace, SOURCE)
    for column, value in (
        (MEAN, lambda one: found.mean(one).value),
        ("task:b", lambda one: found.score(one, "b").value),
        (NAME, lambda one: one.name.lower()),
        (TIME, lambda one: one.report.seconds),
        (SIZE, lambda one: one.report.output_bytes),
    ):
        for descending in (False, True):
            lines = [value(one) for one in arranged(found, Order(column, descending), "")]
            assert lines == sorted(lines, reverse=descending), column
    assert [one.name for one in arranged(found, Order(NAME, False), "ARITH 0.7")] == ["Task arithmetic, scaling 0.7"]
    clicked = board.follow(asked(tab, workspace), link("sort", NAME))
    assert clicked[board.order] == Order(NAME, False) and "merge ▴" in clicked[board.board]
    twice = board.follow(asked(tab, workspace, order=Order(NAME, False)), link("sort", NAME))
    assert twice[board.order] == Order(NAME, True)
    assert Order().after_click("task:a") == Order("task:a", True)
    odd = board.follow(asked(tab, workspace), link("sort", "task:no such task"))
    assert odd[board.board].count("<tr>") == 4, "an unknown column sorts nothing"
    nothing = board.show(asked(tab, workspace, wanted="no such words"))
    assert "No merge fits the filter" in nothing[board.board] and nothing[board.export] == ""
    assert board.follow(asked(tab, workspace), None) == {} and board.follow(asked(tab, workspace), link("x", "y")) == {}


def test_names_and_notes_are_kept_and_shown_as_text(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel
) -> None:
    merge(studio, workspace)
    (one,) = studio.merges.of(workspace)
    values = asked(tab, workspace)
    chosen = board.follow(values, link("merge", one.id))
    assert chosen[board.about]["visible"] and chosen[board.name]["placeholder"] == "Plain average"
    values = after(values, chosen) | {board.name: "<i>best</i>", board.notes: "n1\nn2"}
    shown = board.describe(values)
    assert "&lt;i&gt;best&lt;/i&gt;" in shown[board.board] and "<i>" not in shown[board.board]
    assert "n1 n2" in shown[board.board] and "Plain average" in shown[board.board]
    reopened = Studio(studio.settings, studio.session).merges.of(workspace)
    assert [(m.name, m.about.notes) for m in reopened] == [("<i>best</i>", "n1\nn2")]
    offered = tab.offer_again(asked(tab, workspace) | {tab.ticked: (), tab.offered: ["base"]})[tab.models]["choices"]
    assert offered[-1][0] == "Your merge: <i>best</i>"
    for gone in ("", "../x"):
        with pytest.raises(InputError):
            board.describe(values | {board.chosen: gone})


def test_the_export_holds_what_is_shown(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel
) -> None:
    merge(studio, workspace)
    merge(studio, workspace, "task_arithmetic")
    measure_all(tab, workspace)
    found = leaderboard(studio, workspace, SOURCE)
    studio.merges.describe(found.merges[0], 'a "name", with ж', "two\nlines")
    href = board.show(asked(tab, workspace, wanted="average"))[board.export]
    text = base64.b64decode(href.partition("base64,")[2].partition('"')[0]).decode("utf-8-sig")
    (row,) = csv.DictReader(io.StringIO(text))
    mean = found.mean(found.merges[0])
    assert mean is not None and float(row["mean"]) == pytest.approx(mean.value, abs=1e-4)
    assert float(row["mean low"]) == pytest.approx(mean.interval.low, abs=1e-4)
    assert (row["name"], row["settings"], row["notes"]) == ('a "name", with ж', "Plain average", "two\nlines")
    assert {"a", "b", "c", "seconds", "bytes"} <= row.keys() and Path(row["folder"]) == found.merges[0].folder


def test_deleting_asks_first_and_takes_all_that_the_app_wrote(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel
) -> None:
    run, other = merge(studio, workspace), merge(studio, workspace, "task_arithmetic")
    publish(run.model, studio.settings.saved_dir / "mine")
    measure_all(tab, workspace)
    measured = studio.settings.output_dir / "measured"
    n_before = len(list(measured.iterdir()))
    one = studio.merges.of(workspace)[0]
    studio.merges.describe(one, "first", "")
    values = asked(tab, workspace, chosen=one.id)
    asking = board.ask_to_delete(values)
    assert asking[board.confirm]["visible"] and str(run.path) in asking[board.sure] and "mine" in asking[board.sure]
    assert run.path.is_dir(), "nothing is deleted by asking"
    assert not board.do_not_delete(values)[board.confirm]["visible"]
    (run.model / "my notes.txt").write_text("x")
    with pytest.raises(Exception, match="did not write"):
        board.delete_chosen(values)
    assert run.report.is_file()
    (run.model / "my notes.txt").unlink()
    shown = board.delete_chosen(values)
    assert not run.path.exists() and not (studio.settings.saved_dir / "mine").exists() and other.path.is_dir()
    assert "first" not in shown[board.board] and not shown[board.about]["visible"]
    assert len(list(measured.iterdir())) == n_before - 1
    assert not [file for file in (studio.settings.output_dir / "merges").iterdir() if one.id in file.name]
    with pytest.raises(InputError, match="not there any more"):
        board.delete_chosen(values)


def test_while_something_is_measured_another_start_is_refused(
    studio: Studio, workspace: Workspace, tab: EvaluateTab, board: LeaderboardPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(studio, workspace)
    monkeypatch.setattr(studio.comparisons, "_work", lambda: None)
    board.measure_missing(asked(tab, workspace))
    with pytest.raises(JobError, match="compared already"):
        board.measure_missing(asked(tab, workspace))


def test_a_merge_of_the_leaderboard_is_ticked(studio: Studio, workspace: Workspace, tab: EvaluateTab) -> None:
    run = merge(studio, workspace)
    (one,) = studio.merges.of(workspace)
    ticked = tab.tick_chosen(asked(tab, workspace, chosen=one.id))[tab.models]["value"]
    assert f"folder:{run.model}" in ticked and "individual" in ticked
