"""The trials of a search: an interrupted search goes on as one that never was."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from sftm_app.errors import OutputError
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.tuning.space import Space
from sftm_app.tuning.study import (
    TRIALS_NAME,
    Tried,
    append_trial,
    best_methods,
    best_of,
    claim,
    propose,
    read_trials,
    score_of,
)

SPACE = Space(("task_arithmetic", "ties", "sftm"), ("a", "b"), (1.0, 1.0))


def answer(settings: MergeSettings) -> Tried:
    """A figure that depends on the settings alone; one method always fails."""
    if settings.method == "ties":
        return Tried(settings, {}, None, 0.1, "does not merge")
    score = 1 - abs(settings.params.scaling - 0.8)
    return Tried(settings, {"a": round(100 * score), "b": 50}, score, 0.1)


def search(n: int, own: MergeSettings | None = None) -> list[Tried]:
    tried: list[Tried] = []
    for _ in range(n):
        tried.append(answer(propose(SPACE, tried, own)))
    return tried


def test_a_resumed_search_proposes_what_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = search(16)
    for _ in range(16):
        before = read_trials(tmp_path)
        propose(SPACE, before)  # and killed before it was tried
        append_trial(tmp_path, answer(propose(SPACE, before)))
    assert list(read_trials(tmp_path)) == unbroken
    assert [one.settings for one in unbroken[:3]] == SPACE.starts()
    assert len({one.settings for one in unbroken}) > 13, "it does not try the same again and again"


def test_it_learns() -> None:
    tried = search(50)
    assert sum(one.settings.method == "ties" for one in tried) == 1, "a method that fails is left alone"
    scores = [one.score for one in tried if one.score is not None]
    assert fmean(scores[30:]) > fmean(scores[2:12]) + 0.1 and max(scores) > 0.95


def test_the_best_few_methods_of_the_starts_go_on() -> None:
    space = Space(("task_arithmetic", "ties", "sftm", "wudi", "tsv_m", "iso_c", "swudi"), ("a",), (1.0,))
    starts = [answer(settings) for settings in space.starts()]
    kept = best_methods(space, starts)
    scores = {one.settings.method: one.score for one in starts if one.score is not None}
    assert len(kept) == 4 and min(scores[name] for name in kept) >= max(
        scores[name] for name in set(scores) - set(kept)
    )
    tried = list(starts)
    for _ in range(12):
        tried.append(answer(propose(space, tried)))
    assert {one.settings.method for one in tried[len(starts) :]} <= set(kept)
    assert best_methods(space, [one for one in starts if one.score is None]) == space.methods


def test_a_persons_settings_come_first_even_outside_the_space(tmp_path: Path) -> None:
    own = merge_settings("sftm", {"rank": 3, "scaling": 0.5}, (1.0, 9.0))
    tried = search(12, own)
    assert [one.settings for one in tried[:2]] == [own, SPACE.starts()[0]]
    for one in tried:
        append_trial(tmp_path, one)
    assert list(read_trials(tmp_path)) == tried


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    first, second, third = search(3)
    append_trial(tmp_path, first)
    append_trial(tmp_path, second)
    file = tmp_path / TRIALS_NAME
    file.write_bytes(file.read_bytes()[:-20])
    assert read_trials(tmp_path) == (first,)
    append_trial(tmp_path, third)
    assert read_trials(tmp_path) == (first, third)
    assert read_trials(tmp_path / "none") == ()


def test_the_score_is_the_mean_share_of_the_own_models() -> None:
    assert score_of({"a": 40, "b": 90}, {"a": 80, "b": 90}) == 0.75
    assert score_of({"a": 2, "b": 0}, {"a": 0, "b": 10}) == 1.0, "an own model without a correct answer counts as one"


def test_the_best_is_the_first_of_equals() -> None:
    tried = search(3)
    assert best_of(tried) == max(tried, key=lambda one: one.score or 0)
    assert best_of([one for one in tried if one.score is None]) is None


def test_one_search_at_a_time_is_in_a_folder(tmp_path: Path) -> None:
    with claim(tmp_path / "s"), pytest.raises(OutputError, match="another search is at these"), claim(tmp_path / "s"):
        pass
    with claim(tmp_path / "s"):
        assert (tmp_path / "s" / "lock.json").exists()
    assert not (tmp_path / "s" / "lock.json").exists()
