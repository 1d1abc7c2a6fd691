"""The space follows from the methods' own declarations."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
import pytest

from sftm_app.methods import METHODS
from sftm_app.methods.params import controls
from sftm_app.methods.settings import merge_settings
from sftm_app.tuning.space import COMMON, GIVEN, METHOD, PER_TASK, WEIGHTS, Space

TASKS, WEIGHTS_GIVEN = ("a", "b"), (1.0, 1.0)


@dataclass
class Draws:
    """A study that proposes at random."""

    study: optuna.Study

    def take(self, space: Space, n: int) -> list[tuple[optuna.Trial, object]]:
        trials = [self.study.ask() for _ in range(n)]
        return [(trial, space.draw(trial)) for trial in trials]


@pytest.fixture
def draws() -> Draws:
    return Draws(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_space_of_valid_settings(method: str, draws: Draws) -> None:
    space = Space((method,), TASKS, WEIGHTS_GIVEN)
    known = space.distributions(method)
    for trial, settings in draws.take(space, 12):
        # merge_settings has checked every value.
        assert settings.method == method
        assert set(trial.params) <= set(known)
        unused = settings.params.unused()
        assert not {own.rpartition(".")[2] for own in trial.params} & unused, "what does nothing is not drawn"
        chosen = space.choices(settings)
        assert chosen[METHOD] == method and set(chosen) == set(trial.params)
    searched = {name for name, control in controls(METHODS[method].params).items() if control.searched}
    drawn = {name.removeprefix(f"{method}.") for name in known} - {METHOD, WEIGHTS, "weight.a", "weight.b"}
    assert drawn == searched
    default = merge_settings(method, {}, WEIGHTS_GIVEN)
    chosen = space.choices(default)
    used = {name if name in COMMON else f"{method}.{name}" for name in searched - default.params.unused()}
    assert set(chosen) == {METHOD, WEIGHTS, *used}, "every default lies in the space"


def test_seeds_are_not_searched() -> None:
    assert any(not one.searched for method in METHODS.values() for one in controls(method.params).values())
    for name, method in METHODS.items():
        assert f"{name}.seed" not in Space((name,), TASKS, WEIGHTS_GIVEN).distributions(name), method.title


def test_no_task_is_taken_away(draws: Draws) -> None:
    space = Space(("task_arithmetic",), TASKS, WEIGHTS_GIVEN)
    assert all(settings.params.scaling >= 0 for _, settings in draws.take(space, 20))  # type: ignore[attr-defined]
    chosen = space.choices(merge_settings("task_arithmetic", {"scaling": -0.5}, WEIGHTS_GIVEN))
    assert "task_arithmetic.scaling" not in chosen, "a person's own settings may, and are tried as they are"


def test_weights_are_drawn_where_a_trial_chooses_its_own(draws: Draws) -> None:
    space = Space(("average",), TASKS, (1.0, 3.0))
    drawn = [(trial.params[WEIGHTS], settings.weights) for trial, settings in draws.take(space, 20)]
    assert {weights for kind, weights in drawn if kind == GIVEN} == {(1.0, 3.0)}
    own = [weights for kind, weights in drawn if kind == PER_TASK]
    assert own and all(0.5 <= weight <= 2 for weights in own for weight in weights)
    fixed = Space(("average",), TASKS, (1.0, 3.0), weighted=False)
    assert {settings.weights for _, settings in draws.take(fixed, 5)} == {(1.0, 3.0)}


def test_a_search_begins_with_the_persons_settings_and_the_defaults() -> None:
    space = Space(("sftm", "ties"), TASKS, WEIGHTS_GIVEN)
    own = merge_settings("ties", {"density": 0.4}, WEIGHTS_GIVEN)
    defaults = [merge_settings(name, {}, WEIGHTS_GIVEN) for name in ("sftm", "ties")]
    assert space.starts(own) == [own, *defaults]
    assert space.starts(defaults[1]) == [defaults[1], defaults[0]]
    assert space.starts(merge_settings("average", {}, WEIGHTS_GIVEN)) == defaults


def test_values_outside_the_space_are_no_choices() -> None:
    space = Space(("sftm",), TASKS, WEIGHTS_GIVEN)
    chosen = space.choices(merge_settings("sftm", {"rank": 3, "scaling": 0.7}, (1.0, 9.0)))
    assert "sftm.rank" not in chosen and chosen["sftm.scaling"] == 0.7
    assert chosen["weight.a"] == 1.0 and "weight.b" not in chosen
