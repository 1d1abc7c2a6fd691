"""Answers that models gave, kept in files: a table is there again after a restart, and no model is asked twice.

One JSON file for each model holds its answers to several sets of samples. A file that is damaged counts for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from sftm_app.caching import write_text
from sftm_app.evaluation.answer_sheet import AnswerSheet
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.weights.regular import read_file

MAX_FILE_BYTES = 256 * 1024 * 1024
# How many sets of samples a file keeps for each task.
SETS_KEPT = 4


class _Entry(BaseModel):
    task: str
    samples: str
    time: float
    answers: list[str]
    targets: list[str]
    # One letter a sample: "1" for a correct answer.
    correct: Annotated[str, Field(pattern="^[01]*$")]
    chosen: bool

    @property
    def is_whole(self) -> bool:
        return len(self.answers) == len(self.targets) == len(self.correct) > 0

    @property
    def sheet(self) -> AnswerSheet:
        right = tuple(letter == "1" for letter in self.correct)
        return AnswerSheet(tuple(self.answers), tuple(self.targets), right, self.chosen)


class _File(BaseModel):
    version: Literal[1] = 1
    model: str
    entries: list[_Entry]


class AnswerStore:
    """Answers by model, task and samples. Safe to use from several threads.

    Args:
        folder: of the files; it is made when the first answer is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def load(self, model: str, task: str, samples: str) -> AnswerSheet | None:
        """The answers of a model to the samples of a task; None if they are not known.

        Args:
            model: what identifies the model, its files included.
            task: the task's name.
            samples: see `samples_digest`.
        """
        return self.load_all(model, {task: samples}).get(task)

    def load_all(self, model: str, samples: Mapping[str, str]) -> dict[str, AnswerSheet]:
        """The answers of a model that are known, by task. samples: by task, see `samples_digest`."""
        entries = [one for one in self._read(model) if samples.get(one.task) == one.samples and one.is_whole]
        return {one.task: one.sheet for one in entries}

    def save(self, model: str, task: str, samples: str, sheet: AnswerSheet) -> None:
        """Keep answers. If they cannot be written, the model is asked again next time; so that is not reported."""
        right = "".join("1" if one else "0" for one in sheet.correct)
        new = _Entry(
            task=task,
            samples=samples,
            time=time.time(),
            answers=list(sheet.answers),
            targets=list(sheet.targets),
            correct=right,
            chosen=sheet.chosen,
        )
        with self._lock, contextlib.suppress(OSError):
            others = [one for one in self._read(model) if (one.task, one.samples) != (task, samples)]
            same = sorted((one for one in others if one.task == task), key=lambda one: one.time)
            dropped = same[: max(0, len(same) + 1 - SETS_KEPT)]
            entries = [one for one in others if one not in dropped]
            write_text(self._file(model), _File(model=model, entries=[*entries, new]).model_dump_json())

    def forget(self, model: str) -> None:
        """Remove all answers of a model."""
        with self._lock, contextlib.suppress(OSError):
            self._file(model).unlink(missing_ok=True)

    def _read(self, model: str) -> list[_Entry]:
        file = self._file(model)
        with contextlib.suppress(OSError, ValidationError, UnicodeDecodeError):
            found = _File.model_validate_json(read_file(file, MAX_FILE_BYTES).decode())
            return found.entries if found.model == model else []
        return []

    def _file(self, model: str) -> Path:
        return self._folder / f"{hashlib.sha256(model.encode()).hexdigest()[:32]}.json"


def samples_digest(samples: Samples) -> str:
    """Changes whenever one of the samples does, or what is offered with them."""
    found = hashlib.sha256()
    if isinstance(samples, ImageSamples):
        found.update(repr((samples.images.shape, samples.choices)).encode())
        found.update(samples.images.tobytes())
        found.update(samples.labels.tobytes())
    else:
        found.update(repr((samples.inputs, samples.targets, samples.choices, samples.chat)).encode())
    return found.hexdigest()[:32]
