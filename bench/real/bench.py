"""What a bench is: a base, fine-tunes of it, and how to tell on which samples a model is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftm_app.evaluation.building import build_model
from sftm_app.evaluation.family import ModelParts
from sftm_app.evaluation.samples import Samples
from sftm_app.methods import get_method
from sftm_app.methods.params import make_params

# (model, task, part) -> one truth value per sample, always in the same order. The model is built by `Bench.build` for
# the task, with that task's head, in float32 and evaluation mode. `part` is "test", "validation", another test part, or
# the name of a set that no task was tuned for.
Correct = Callable[[Any, str, str], Sequence[bool]]
TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True, eq=False)
class Bench:
    """Fine-tunes of one base, made with one seed.

    Attributes:
        name: names the bench and its seed, such as "text-0".
        base: the folder of the base.
        tasks: the folders of the fine-tunes by task, in the order of the tables.
        home: the folder for what is measured.
        correct: on which samples a model is right. Samples are the same for every seed.
        more: further test parts after "test", for the tables that take all samples.
        measured: the tasks that have samples; None for all.
        unseen: sets that no task was tuned for, by name, each with the task whose head reads it.
        inputs: a task's validation inputs as the app reads them, without labels.
        build: makes the model that `correct` takes from its parts.
        extras: other figures of a merge from its tensors by the base's names, such as how similar embeddings are.
    """

    name: str
    base: Path
    tasks: Mapping[str, Path]
    home: Path
    correct: Correct
    inputs: Callable[[str], Samples]
    more: tuple[str, ...] = ()
    measured: tuple[str, ...] | None = None
    unseen: Mapping[str, str] | None = None
    build: Callable[[ModelParts], Any] = build_model
    extras: Callable[[Mapping[str, Any]], Mapping[str, float]] | None = None

    @property
    def scored(self) -> tuple[str, ...]:
        """The tasks that have samples."""
        return self.measured if self.measured is not None else tuple(self.tasks)


@dataclass(frozen=True)
class Settings:
    """A method and those of its parameters that are not left at their defaults.

    Attributes:
        method: a key of METHODS.
        params: (name, value), sorted by name.
    """

    method: str
    params: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.params)])


def settings(method: str, **params: Any) -> Settings:
    """Settings, checked as a recipe's.

    Raises:
        RecipeError: the method or a parameter is unknown, or a value is out of range.
    """
    make_params(get_method(method).params, params, method)
    return Settings(method, tuple(sorted(params.items())))
