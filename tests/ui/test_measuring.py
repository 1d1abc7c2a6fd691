"""All tasks on the Evaluate tab: measured in the background, known after a restart, with the wrong answers."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from tab_values import after
from test_evaluate import asked, measured, open_tab, own
from test_evaluate import text_models as text_models
from test_evaluate import text_studio as text_studio

from sftm_app.errors import InputError, OutputError, SampleError
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, folder_candidate, method_candidate
from sftm_app.evaluation.packs import load_samples
from sftm_app.evaluation.samples import TextSamples
from sftm_app.evaluation.scores import score_table
from sftm_app.plots.style import merge_colour
from sftm_app.ui import comparisons, loading
from sftm_app.ui.evaluate.found_sets import sample_choices
from sftm_app.ui.evaluate.score_view import SAME, measure_words, models_table, ordered, score_bars, task_title
from sftm_app.ui.evaluate.sources import Source, known_source, remember
from sftm_app.ui.evaluate.table_panel import evaluate_key
from sftm_app.ui.evaluate.uploads import keep_uploads
from sftm_app.ui.evaluate.wrong_view import wrong_html
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import parse_selection
from sftm_app.ui.workspace import Workspace

pytestmark = pytest.mark.usefixtures("no_server")

AVERAGE = method_candidate("average")


def link(*target: object) -> Any:
    return parse_selection({"x": None, "y": None, "customdata": list(target), "curve": 0})


def sheet(*right: int) -> AnswerSheet:
    said = tuple("x" if one else "y" for one in right)
    return AnswerSheet(said, ("x",) * len(right), tuple(map(bool, right)))


def test_models_are_measured_and_the_table_is_there_after_a_restart(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    values = asked(tab, workspace, limit=200)
    assert "Not measured yet" in tab.table.watch(values)[tab.table.table]
    shown = measured(tab, values)
    table, pool = shown[tab.table.table], studio.model_pool(workspace)
    for task in studio.packs[0].tasks:
        samples = load_samples(task)
        for model in (BASE, INDIVIDUAL, AVERAGE):
            right = [one.correct for one in pool.model(model, task.name).answer(samples)]
            assert f"{sum(map(bool, right)) / len(right):.1%}" in table
    assert "12 samples per task of the demo" in table and table.count("<tr>") == 4
    assert shown[tab.table.start]["interactive"] and not shown[tab.table.timer].active
    again = Studio(studio.settings, studio.session)
    restarted = open_tab(again)
    opened = restarted.open_workspace(asked(restarted, workspace))
    assert opened[restarted.table.limit] == 200
    rows = opened[restarted.table.table].split("<tr>")[2:]
    assert [("·" in row) for row in rows] == [False, False, False, True], "SFTM is ticked, and was not measured"


def test_nothing_is_sent_again_that_the_page_shows(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    values = asked(tab, workspace, limit=10)
    shown = measured(tab, values)
    later = after(values, shown)
    assert tab.table.table not in tab.table.watch(later)
    fewer = tab.table.redraw(later | {tab.models: ["base"]})
    assert "Plain average" not in fewer[tab.table.table] and "Individual" in fewer[tab.table.table]
    macro = tab.table.redraw(later | {tab.table.measure: "macro_f1"})[tab.table.table]
    assert "Macro-F1 on 10 samples per task" in macro


def test_scores_open_wrong_answers_and_those_open_samples(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    values = asked(tab, workspace, limit=12)
    measured(tab, values)
    opened = tab.table.wrong_of(values, link("wrong", INDIVIDUAL.key, "b"))[tab.table.wrong]
    samples = load_samples(studio.packs[0].tasks[1])
    right = [one.correct for one in studio.model_pool(workspace).model(INDIVIDUAL, "b").answer(samples)]
    assert opened.count("<img") == right.count(False) > 0
    place = right.index(False)
    first, *_, last = tab.sample_of(values, link("sample", "b", float(place)))
    assert first[tab.task] == "b" and first[tab.sample].labels.tolist() == [samples.labels[place]]
    assert last[tab.verdict].count("sf-stat-value") == 3 and "The right answer is" in last[tab.verdict]
    for odd in (link("wrong", "folder:/etc", "b"), link("wrong", INDIVIDUAL.key, "z"), link("sample", "b", 0.0), None):
        assert tab.table.wrong_of(values, odd) == {}
    for odd in (link("sample", "b", 99.0), link("sample", "b", "x"), link("sample", "z", 0.0), link("wrong", "b", 0.0)):
        assert list(tab.sample_of(values, odd)) == []


def test_wrong_texts_are_shown_as_text() -> None:
    given = AnswerSheet(("<b>no", "yes"), ("yes", "yes"), (False, True))
    shown = wrong_html("M", "t", given, TextSamples(("<script>" + "x" * 200, "fine"), ("yes", "yes")))
    assert "1 of 2 answers are wrong" in shown and "&lt;script&gt;" in shown and "<script>" not in shown
    assert "&lt;b&gt;no" in shown and "x" * 130 not in shown
    assert "All 1 answers are right" in wrong_html("M", "t", sheet(1), TextSamples(("a",), ("x",)))


def test_a_measurement_is_cancelled_and_keeps_whole_tasks(
    studio: Studio, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()
    compare = comparisons.compare

    def held(*arguments: Any) -> Any:
        for step in compare(*arguments):
            yield step
            if step.active and len(step.active.measurement.sheets.get("a", ())) == 12:
                reached.set()
                go.wait(60)

    monkeypatch.setattr(comparisons, "compare", held)
    tab = open_tab(studio)
    values = asked(tab, workspace, limit=12)
    begun = tab.table.begin(values)
    assert begun[tab.table.cancel]["visible"] and not begun[tab.table.start]["interactive"]
    assert reached.wait(60)
    tab.table.stop(values)
    go.set()
    for thread in threading.enumerate():
        if thread.name == "compare":
            thread.join(60)
    shown = tab.table.watch(values)
    assert "was cancelled" in shown[tab.table.progress] and shown[tab.table.start]["interactive"]
    board = studio.comparisons.board(evaluate_key(workspace))
    assert board is not None and not board.active
    monkeypatch.setattr(comparisons, "compare", compare)
    assert "·" not in measured(tab, values)[tab.table.table]


def test_what_waits_is_told_and_can_be_cancelled(studio: Studio, workspace: Workspace) -> None:
    held = threading.Event()

    class Slow(comparisons.Comparisons):
        def _carry_out(self, job: Any) -> tuple[str, str]:
            held.wait(60)
            return super()._carry_out(job)

    studio.own.comparisons = Slow()
    tab = open_tab(studio)
    values = asked(tab, workspace, limit=12)
    from sftm_app.ui.evaluate.sources import benchmark_of

    conditions, benchmark = benchmark_of(studio, workspace, Source(limit=12))
    studio.comparisons.start("first", conditions, benchmark, [AVERAGE])
    assert "Waiting for another measurement" in tab.table.begin(values)[tab.table.progress]
    shown = tab.table.stop(values)
    assert "was cancelled" in shown[tab.table.progress] and not shown[tab.table.cancel]["visible"]
    held.set()
    for thread in threading.enumerate():
        if thread.name == "compare":
            thread.join(60)
    first = studio.comparisons.board("first")
    assert first is not None and first.state == "done"


def test_nothing_ticked_or_no_samples_is_said(studio: Studio, workspace: Workspace) -> None:
    tab = open_tab(studio)
    with pytest.raises(InputError, match="No model is ticked"):
        tab.table.begin(asked(tab, workspace, models=[]))
    mine = loading.load_own(studio, "base", ["a", "b"])
    with pytest.raises(SampleError, match="no labelled samples"):
        tab.table.begin(asked(tab, mine))
    said = tab.table.watch(asked(tab, mine))[tab.table.table]
    assert "No labelled samples yet" in said and "Enter a folder under Labelled samples" in said
    assert "cannot be used" in tab.table.watch(asked(tab, mine, where="/etc"))[tab.table.table]


def test_models_that_may_be_equal_are_not_told_apart() -> None:
    merge = folder_candidate(Path("m"), "Mine <b>", "sftm", 3)
    sheets = {
        BASE.key: {"a": sheet(*[0] * 40)},
        INDIVIDUAL.key: {"a": sheet(*[1] * 40)},
        AVERAGE.key: {"a": sheet(*[1] * 20, *[0] * 20)},
        merge.key: {"a": sheet(*[1] * 21, *[0] * 19)},
    }
    models = [AVERAGE, merge, INDIVIDUAL, BASE]
    scores = score_table(sheets)
    assert ordered(scores, models) == [BASE, INDIVIDUAL, merge, AVERAGE]
    table = models_table(scores, models, {"a": 40}, "of mine.csv")
    rows = {
        name: row
        for row in table.split("<tr>")
        for name in ("Plain average", "Individual", "Mine &lt;b&gt;")
        if name in row
    }
    assert SAME in rows["Plain average"] and SAME not in rows["Individual"] and "the best" in rows["Mine &lt;b&gt;"]
    assert "52.5%" in rows["Mine &lt;b&gt;"] and "40 samples per task of mine.csv" in table
    figure = score_bars(scores, models)
    assert figure is not None and [trace.marker.color for trace in figure.data][2] == merge_colour(3)
    bars = figure.data[2]
    assert bars.error_y.array[0] > 0 and bars.y[0] - bars.error_y.arrayminus[0] == pytest.approx(
        scores.cells[merge.key]["a"].interval.low
    )


def test_the_score_is_named_at_each_task_only_where_they_differ() -> None:
    written = AnswerSheet(("x",), ("x",), (True,), chosen=False)
    alike, mixed = score_table({"m": {"a": sheet(1)}}), score_table({"m": {"a": sheet(1), "b": written}})
    assert task_title(alike, "a") == "a" and measure_words(alike) == "accuracy"
    assert "Exact match" in str(task_title(mixed, "b")) and measure_words(mixed) == "accuracy or exact match"
    assert measure_words(score_table({"m": {"b": written}}, "bleu")) == "BLEU"


# Where samples come from


def test_samples_used_last_are_known_and_else_the_demos_or_those_next_to_the_base(
    studio: Studio, workspace: Workspace, text_studio: Studio
) -> None:
    assert known_source(studio, workspace) == Source(limit=200)
    mine = own(text_studio, "bert")
    assert known_source(text_studio, mine) is None
    beside = text_studio.settings.models_dir / "bert" / "samples"
    beside.mkdir()
    found = known_source(text_studio, mine)
    assert found is not None and found.where == str(beside)
    table = text_studio.settings.models_dir / "mine.csv"
    table.write_text("text,label\nthe cat,good\n")
    used = Source(str(table), 20, ("x", "y"), True)
    remember(text_studio, mine, used)
    assert known_source(Studio(text_studio.settings, text_studio.session), mine) == used
    table.unlink()
    assert known_source(text_studio, mine) == found, "a file that is gone is not known any more"
    text_studio.keeper.put(mine, "samples", '{"where": "/etc/passwd", "limit": 5, "names": null, "chat": null}')
    assert known_source(text_studio, mine) == found
    text_studio.keeper.put(mine, "samples", "[1]")
    assert known_source(text_studio, mine) == found
    assert known_source(text_studio, Workspace()) is None


def test_sets_below_the_roots_are_offered(text_studio: Studio) -> None:
    ws, root = own(text_studio, "bert"), text_studio.settings.models_dir
    (root / "mine.csv").write_text("text,label\nx,good\n")
    (root / "sets").mkdir()
    (root / "sets" / "a.json").write_text("{}")
    (root / "pictures" / "b" / "cat").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.csv").write_text("")
    # gpt2 is a demo's folder with samples of tasks of the same names.
    assert [name for name, _ in sample_choices(text_studio.settings, ws)] == ["mine.csv", "gpt2", "pictures", "sets"]


def test_uploads_are_kept_below_the_output_folder(studio: Studio, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.csv", "b.jsonl")]
    for file in files:
        file.write_text("text,label\nx,y\n")
    one = keep_uploads(studio.settings, [str(files[0])])
    assert one == studio.settings.output_dir / "samples" / "a.csv" and one.read_text() == files[0].read_text()
    assert keep_uploads(studio.settings, [str(files[0])]).name == "a-2.csv"
    both = keep_uploads(studio.settings, list(map(str, files)))
    assert sorted(path.name for path in both.iterdir()) == ["a.csv", "b.jsonl"] and both.parent.name == "samples"
    for wrong in ([], [str(tmp_path / "x.exe")]):
        with pytest.raises(SampleError, match="upload files that end in"):
            keep_uploads(studio.settings, wrong)
    shutil.rmtree(studio.settings.output_dir)
    studio.settings.output_dir.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        keep_uploads(studio.settings, [str(files[0])])


def test_an_upload_is_used_and_remembered(text_studio: Studio, tmp_path: Path) -> None:
    ws, tab = own(text_studio, "bert"), open_tab(text_studio)
    file = tmp_path / "up.csv"
    file.write_text("text,label\nthe cat,good\na dog,bad\n")
    values = asked(tab, ws, limit=10)
    shown = tab.table.take_upload(values | {tab.table.upload: [str(file)]})
    where = shown[tab.table.where]["value"]
    assert Path(where).parent == text_studio.settings.output_dir / "samples"
    table = measured(tab, values | {tab.table.where: where})[tab.table.table]
    assert "2 samples per task of" in table and "up.csv" in table
    kept = known_source(text_studio, ws)
    assert kept is not None and kept.where == where
