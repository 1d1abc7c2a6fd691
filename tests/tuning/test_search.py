"""A search from end to end on tiny models: trials, resuming, Stop and Cancel, and what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import psutil
import pytest
import torch

from sftm_app.errors import MethodError, OutputError, ResourceError, SampleError
from sftm_app.evaluation.accuracy import accuracy
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.candidates import (
    BASE,
    INDIVIDUAL,
    Candidate,
    ModelPool,
    merge_in_memory,
    method_candidate,
)
from sftm_app.evaluation.comparison import Comparison, Row
from sftm_app.evaluation.measuring import Measurement
from sftm_app.evaluation.samples import Samples
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import merge_settings
from sftm_app.tuning import search as searching
from sftm_app.tuning.search import Budget, restore, search, verdict
from sftm_app.tuning.setup import About, Setup, find_about, fitting_methods, write_about
from sftm_app.tuning.study import Tried, read_trials

Build = Callable[..., Setup]


def settings_of(trials: tuple[Tried, ...]) -> list[object]:
    return [one.settings for one in trials]


def test_a_search_tries_reports_and_resumes(setup_in: Build, tmp_path: Path) -> None:
    setup = setup_in(tmp_path / "a")
    steps = list(search(setup, Budget(6)))
    last = steps[-1]
    assert last.phase == "done" and len(last.tried) == 6 and last.comparison is not None
    assert settings_of(last.tried)[:3] == setup.space.starts()
    fractions = [step.fraction for step in steps if step.phase == "trials" and step.tried]
    assert fractions == sorted(fractions) and last.per_minute
    # A trial's figures are those of the same merge, built and tried by itself.
    assert last.own is not None and last.best is not None
    pool, best = ModelPool(setup.found, setup.session), setup.candidate(last.best.settings)
    shares = []
    for task, part in setup.validation.items():
        right = round(accuracy(pool.model(best, task), part) * len(part))
        assert last.best.correct[task] == right
        assert last.own[task] == round(accuracy(pool.model(INDIVIDUAL, task), part) * len(part))
        shares.append(right / max(last.own[task], 1))
    assert last.best.score == pytest.approx(fmean(shares))
    # What is reported was measured on other samples, beside base, own models, the average and the default.
    rows = {row.candidate.key: row for row in last.comparison.rows}
    assert list(rows)[:4] == [BASE.key, INDIVIDUAL.key, "method:average", "method:sftm"] and best.key in rows
    for task, part in setup.test.items():
        assert fmean(rows[best.key].measurement.correct[task]) == pytest.approx(accuracy(pool.model(best, task), part))
    assert all(row.accuracy and row.accuracy.low <= row.accuracy.value <= row.accuracy.high for row in rows.values())

    # The same search, killed in the middle of its trials and of its report.
    broken = setup_in(tmp_path / "b")
    for now in (steps := search(broken, Budget(6))):
        if len(now.tried) == 4 and now.active is not None:
            steps.close()
    assert len(read_trials(broken.folder)) == 4 and restore(broken, 6).comparison is None
    for now in (steps := search(broken, Budget(6))):
        if now.phase == "test" and now.comparison and now.comparison.finished:
            steps.close()
    *_, again = search(broken, Budget(6))
    assert settings_of(again.tried) == settings_of(last.tried)
    assert again.comparison is not None
    assert [row.accuracy for row in again.comparison.rows] == [row.accuracy for row in last.comparison.rows]
    # After a restart, all of it is known without building a model.
    shown = restore(broken, 6)
    assert shown.own == last.own and shown.comparison is not None
    assert [row.accuracy for row in shown.comparison.rows] == [row.accuracy for row in last.comparison.rows]


def test_the_verdict_says_what_the_samples_can_tell() -> None:
    default, other = method_candidate("sftm"), method_candidate("ties", {"density": 0.4})

    def told(right: int, best: Candidate = other) -> str:
        sheets = {
            default: AnswerSheet(correct=(True,) * 50 + (False,) * 50),
            other: AnswerSheet(correct=(True,) * right + (False,) * (100 - right)),
        }
        rows = tuple(Row(Measurement(one, {"t": sheet}), "done") for one, sheet in sheets.items())
        return verdict(Comparison({"t": 100}, rows), best.key)

    assert "is not distinguishable from the default on these samples: +1.0 points (+0.0 to" in told(51)
    assert "is above the default: +40.0 points (+3" in told(90)
    assert "is below the default: -40.0" in told(10)
    assert told(90, default) == "The default is the best that was found."


def test_the_best_merges_to_the_same_tensors(setup_in: Build, tmp_path: Path, session: object) -> None:
    setup = setup_in(tmp_path)
    own = merge_settings("sftm", {"scaling": 0.5, "rank": 3}, (1.0, 2.0, 0.5))
    *_, last = search(replace(setup, own=own), Budget(1))
    assert last.best is not None and last.best.settings == own
    chosen = setup.candidate(last.best.settings)
    tensors = merge_in_memory(setup.found, chosen.kind, chosen.params, setup.session, chosen.weights)
    same = merge_in_memory(setup.found, "sftm", values_of(own.params), setup.session, own.weights)
    assert all(torch.equal(tensors[name], same[name]) for name in same)


def test_stop_reports_what_was_found_and_cancel_does_not(setup_in: Build, tmp_path: Path) -> None:
    setup = setup_in(tmp_path)
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) > 2

    *_, last = search(setup, Budget(50), stopped)
    assert len(last.tried) == 2 and last.comparison is not None and last.phase == "done"
    steps = search(setup, Budget(50))
    next(steps)
    with pytest.raises(OutputError, match="another search is at these"):
        next(search(setup, Budget(50)))
    steps.close()
    *_, last = search(setup, Budget(50, minutes=0.0))
    assert len(last.tried) == 2, "no time, no trial"


def test_settings_that_do_not_merge_fail_alone(
    setup_in: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: object, session: object) -> object:
        raise MethodError("the method failed")

    setup = setup_in(tmp_path)
    monkeypatch.setattr(searching, "run", broken)
    *_, last = search(setup, Budget(2))
    assert [one.problem for one in last.tried] == ["the method failed"] * 2
    assert last.best is None and last.comparison is None


def test_other_models_samples_or_methods_are_another_search(
    setup_in: Build, tmp_path: Path, samples: dict[str, Samples]
) -> None:
    here = setup_in(tmp_path)
    assert setup_in(tmp_path).folder == here.folder
    fewer = {task: one.subset(20) for task, one in samples.items()}
    others = [
        setup_in(tmp_path, **changes).folder
        for changes in (
            {"samples": fewer},
            {"methods": ("average",)},
            {"weighted": False},
            {"limit": 5},
            {"split_fused": True},
        )
    ]
    assert len({here.folder, *others}) == 6
    own = merge_settings("average", {}, (1.0, 1.0, 1.0))
    assert setup_in(tmp_path, own=own).folder == here.folder, "the form's settings are tried, and change nothing else"


def test_methods_that_fit_are_searched(setup_in: Build, tmp_path: Path) -> None:
    assert setup_in(tmp_path, methods=()).space.methods == fitting_methods(3)
    assert "slerp" not in fitting_methods(3) and "slerp" in fitting_methods(2)
    with pytest.raises(SampleError, match="No task has labelled samples"):
        setup_in(tmp_path, samples={})


def test_searches_are_found_by_their_models(tmp_path: Path) -> None:
    first = About("models", ("sftm",), True, 100, "sets", 50)
    write_about(tmp_path / "one", first)
    write_about(tmp_path / "two", replace(first, models="others"))
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "search.json").write_text("{")
    assert find_about(tmp_path, "models") == [first]


def test_models_that_do_not_fit_into_memory_are_refused(
    setup_in: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    with pytest.raises(ResourceError, match="1 kB are free"):
        list(search(setup_in(tmp_path), Budget(1)))
