"""What a run's worker reports: one event a line in events.jsonl, in the order in which they happened."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import Field, TypeAdapter, ValidationError

from sftm_app.output.progress import Progress
from sftm_app.weights.regular import read_file

MAX_EVENTS_BYTES = 256 << 20
MAX_TEXT = 1 << 20
_Finite = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True)
class Started:
    """A process was given the run."""

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    process_started: _Finite
    kind: Literal["started"] = "started"

    @classmethod
    def by(cls, process: psutil.Process) -> Started:
        """The event of a process. Its start time tells it from a later process with the same pid."""
        return cls(process.pid, process.create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it is still running."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.create_time() == self.process_started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class Progressed:
    """One more tensor is merged; see output.progress.Progress. remaining_s: None in runs of earlier versions."""

    done: _Count
    total: _Count
    name: Annotated[str, Field(max_length=MAX_TEXT)]
    fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    elapsed_s: _Finite
    remaining_s: _Finite | None = None
    kind: Literal["progress"] = "progress"

    @classmethod
    def to(cls, progress: Progress) -> Progressed:
        """The event of a merge's progress."""
        return cls(**asdict(progress))


@dataclass(frozen=True)
class Resumed:
    """A person asked for the run to be resumed."""

    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True)
class Done:
    """The model is complete."""

    kind: Literal["done"] = "done"


@dataclass(frozen=True)
class Failed:
    """The run ended with an error. message: a sentence."""

    message: Annotated[str, Field(max_length=MAX_TEXT)]
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class WasCancelled:
    """The run was stopped by a person."""

    message: Annotated[str, Field(max_length=MAX_TEXT)] = "Cancelled."
    kind: Literal["cancelled"] = "cancelled"


Event = Started | Progressed | Resumed | Done | Failed | WasCancelled
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def append_event(file: Path, event: Event) -> None:
    """Add one event, in a single write of one line, so that a reader never sees parts of two."""
    line = json.dumps({"time": time.time(), **asdict(event)}) + "\n"
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(line)


def read_events(file: Path) -> list[Event]:
    """All events so far. Left out are a last line that is still being written, and lines that are no events.

    Raises:
        OSError: it cannot be read, is too large, or is not a regular file.
    """
    found: list[Event] = []
    with contextlib.suppress(FileNotFoundError):
        for line in read_file(file, MAX_EVENTS_BYTES).split(b"\n")[:-1]:
            with contextlib.suppress(ValidationError):
                found.append(_EVENT.validate_json(line))
    return found
