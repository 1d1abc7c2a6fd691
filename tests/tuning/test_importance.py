"""The setting that decides the score is the most important one."""

from __future__ import annotations

from test_study import SPACE, search

from sftm_app.tuning.importance import MIN_TRIALS, importances
from sftm_app.tuning.study import best_of


def test_what_decides_the_score_is_the_most_important() -> None:
    tried = search(50)
    found = importances(SPACE, tried)
    best = best_of(tried)
    assert best is not None
    assert next(iter(found)) == f"{best.settings.method}.scaling", "the score of these trials depends on it alone"
    assert abs(sum(found.values()) - 1) < 1e-6 and list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) <= set(SPACE.distributions(best.settings.method))


def test_a_few_trials_say_nothing() -> None:
    assert importances(SPACE, search(MIN_TRIALS - 1)) == {} and importances(SPACE, []) == {}
