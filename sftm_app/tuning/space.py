"""The settings that a search tries. They follow from the parameters that the methods declare, so a new method joins in.

    method              one of those that are searched
    PARAMETER           of those that every method has, such as depth: what helps one method may help another
    METHOD.PARAMETER    each of the method's own parameters that does something at the choices that are made
    weights             "as given", or "one per task"; then
    weight.TASK         each task's weight

Numbers whose range spans a factor of 100 or more are drawn on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sftm_app.methods import METHODS
from sftm_app.methods.params import CommonParams, Control, controls, values_of
from sftm_app.methods.settings import MergeSettings, merge_settings

METHOD, WEIGHTS, WEIGHT = "method", "weights", "weight"
GIVEN, PER_TASK = "as given", "one per task"
# Few, so that the factors of one trial serve others. None is the full rank.
RANKS = (0.05, 0.1, 0.2, 0.4, None)
WEIGHT_RANGE = FloatDistribution(0.5, 2.0, log=True)
LOG_FROM = 100.0
# The settings that every method has.
COMMON = tuple(item.name for item in fields(CommonParams))


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        methods: names of METHODS.
        tasks: the tasks' names.
        weights: one per task, of trials that do not choose their own.
        weighted: whether one weight per task is searched too.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    weights: tuple[float, ...]
    weighted: bool = True

    def distributions(self, method: str) -> dict[str, BaseDistribution]:
        """What a trial with this method may choose, by the name of the choice, the method itself included."""
        found: dict[str, BaseDistribution] = {METHOD: CategoricalDistribution(self.methods)}
        default = values_of(METHODS[method].params())
        for name, control in _searched(method).items():
            found[_choice(method, name)] = _distribution(control, default[name])
        if self.weighted:
            found[WEIGHTS] = CategoricalDistribution((GIVEN, PER_TASK))
            found |= {f"{WEIGHT}.{task}": WEIGHT_RANGE for task in self.tasks}
        return found

    def draw(self, trial: optuna.Trial) -> MergeSettings:
        """The settings that a trial proposes."""
        method = str(trial.suggest_categorical(METHOD, self.methods))
        known, default = _searched(method), values_of(METHODS[method].params())
        values: dict[str, Any] = {}
        # Choices first: at some of them, other parameters do nothing.
        for name in sorted(known, key=lambda name: known[name].kind != "choice"):
            if name not in _unused(method, values):
                values[name] = _suggest(trial, _choice(method, name), _distribution(known[name], default[name]))
        weights = self.weights
        if self.weighted and trial.suggest_categorical(WEIGHTS, (GIVEN, PER_TASK)) == PER_TASK:
            weights = tuple(_suggest(trial, f"{WEIGHT}.{task}", WEIGHT_RANGE) for task in self.tasks)
        return merge_settings(method, values, weights)

    def choices(self, settings: MergeSettings) -> dict[str, Any]:
        """What a trial would have chosen to get these settings; values outside the space are left out."""
        values = values_of(settings.params)
        unused = _unused(settings.method, values)
        chosen: dict[str, Any] = {METHOD: settings.method}
        chosen |= {_choice(settings.method, name): value for name, value in values.items() if name not in unused}
        if settings.weights == self.weights:
            chosen[WEIGHTS] = GIVEN
        else:
            chosen[WEIGHTS] = PER_TASK
            chosen |= {f"{WEIGHT}.{task}": w for task, w in zip(self.tasks, settings.weights, strict=True)}
        known = self.distributions(settings.method)
        return {name: value for name, value in chosen.items() if name in known and _holds(known[name], value)}

    def starts(self, own: MergeSettings | None = None) -> list[MergeSettings]:
        """What is tried first: a person's own settings, then each method at its defaults."""
        first = [own] if own is not None and own.method in self.methods else []
        defaults = [merge_settings(method, {}, self.weights) for method in self.methods]
        return [*first, *(one for one in defaults if one not in first)]


def _choice(method: str, parameter: str) -> str:
    """The name of the choice of a parameter."""
    return parameter if parameter in COMMON else f"{method}.{parameter}"


def _searched(method: str) -> dict[str, Control]:
    return {name: control for name, control in controls(METHODS[method].params).items() if control.searched}


def _unused(method: str, values: Mapping[str, Any]) -> frozenset[str]:
    params = METHODS[method].params(**values)
    return params.unused() if isinstance(params, CommonParams) else frozenset()


def _distribution(control: Control, default: Any) -> BaseDistribution:
    if control.kind == "choice":
        return CategoricalDistribution(control.choices)
    if control.kind == "rank":
        return CategoricalDistribution((*RANKS, *([] if default in RANKS else [default])))
    # Negative values take tasks away. Nobody who searches for the best merge wants that, unless the method does.
    low = max(control.minimum, 0.0) if default >= 0 else control.minimum
    if control.step == 1:
        return IntDistribution(int(low), int(control.maximum))
    return FloatDistribution(low, control.maximum, log=low > 0 and control.maximum / low >= LOG_FROM)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    value = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    # As a person would type it.
    return min(max(float(f"{value:.3g}"), distribution.low), distribution.high)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return bool(distribution.low <= value <= distribution.high)
