"""What a killed run leaves for the next one: which tensors are finished, and what they were made from.

It is the file `progress.jsonl` in the partial output. The first line says what the run was made from; each other line
says that one tensor is written. A line counts if the tensor's bytes have the checksum that it gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from sftm_app import __version__
from sftm_app.engine.records import TensorRecord
from sftm_app.errors import OutputError
from sftm_app.planning.plan import Plan
from sftm_app.planning.recipe import recipe_to_dict
from sftm_app.session import Session
from sftm_app.weights.partial import PROGRESS_NAME, partial_of, refuse_in_use, sync_folder
from sftm_app.weights.regular import open_file, read_file
from sftm_app.weights.writer import WeightsWriter

# A killed process loses nothing that it wrote; only a power cut does, and at most this much work.
SYNC_S = 10.0
MAX_PROGRESS_BYTES = 1 << 30
_MAX_NAMED = 3


@dataclass(frozen=True)
class Start:
    """The first line of a progress file: what the output is made from (see `made_from`), and its number of tensors."""

    made_from: dict[str, Any]
    total: int


@dataclass(frozen=True)
class Finished:
    """Any other line: a tensor that is written, and the time and memory that the run had taken until then."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")

    name: str
    checksum: int
    records: tuple[TensorRecord, ...]
    elapsed_s: float
    peak_bytes: int


_START = TypeAdapter(Start)
_FINISHED = TypeAdapter(Finished)


@dataclass(frozen=True)
class MadeBy:
    """What the bytes of a result depend on in a process and its machine."""

    app: str
    torch: str
    device: str
    processor: str
    n_threads: int

    def facts(self) -> dict[str, Any]:
        """The same by the words that messages use."""
        return {
            "SFTM Studio": self.app,
            "torch": self.torch,
            "the device": self.device,
            "the processor": self.processor,
            "the number of threads": self.n_threads,
        }


@dataclass(frozen=True)
class Unfinished:
    """What a killed run left in the folder `partial`: its start, and the finished tensors by name."""

    partial: Path
    start: Start
    finished: dict[str, Finished]


def has_progress(output: Path) -> bool:
    """Whether a killed run of `output` can be resumed. Quick: verifies nothing."""
    with contextlib.suppress(OSError), os.fdopen(open_file(partial_of(output) / PROGRESS_NAME), "rb") as file:
        return bool(file.readline()) and file.readline().endswith(b"\n")
    return False


def read_unfinished(output: Path) -> Unfinished | None:
    """What a killed run of `output` left, or None if there is nothing to resume."""
    path = partial_of(output) / PROGRESS_NAME
    try:
        first, *lines = read_file(path, MAX_PROGRESS_BYTES).split(b"\n")
        start = _START.validate_json(first)
    except (OSError, ValidationError):
        return None
    finished: dict[str, Finished] = {}
    for line in lines:
        with contextlib.suppress(ValidationError):  # torn by a crash
            one = _FINISHED.validate_json(line)
            finished[one.name] = one
    return Unfinished(path.parent, start, finished) if finished else None


def to_resume(plan: Plan, session: Session, output: Path, resume: bool | None) -> Unfinished | None:
    """Find what `save` resumes.

    Args:
        plan, session, output: of the run that starts.
        resume: True resumes what a killed run left, False discards it, None refuses if there is anything.

    Returns:
        What was left, or None to start from the beginning.

    Raises:
        OutputError: it was made from something else, another run is writing it, or `resume` is None.
    """
    left = None if resume is False else read_unfinished(output)
    if left is None:
        return None
    refuse_in_use(left.partial)
    if resume is None:
        raise OutputError(
            f"{left.partial}: holds {len(left.finished)} of {left.start.total} tensors of a merge that was stopped. "
            "Add --resume to continue it, or --no-resume to start again (in Python: resume=True or False)."
        )
    before, now = _flat(left.start.made_from), _flat(made_from(plan, session))
    changes = [_change(key, before, now) for key in {**before, **now} if before.get(key) != now.get(key)]
    if changes:
        more = f", and {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else ""
        raise OutputError(
            f"{left.partial}: cannot be resumed, because the other tensors would not fit the finished ones: "
            f"{', '.join(changes[:_MAX_NAMED])}{more}. Undo that, or start again (--no-resume)."
        )
    return left


def made_by(device: torch.device, n_threads: int) -> MadeBy:
    """What the bytes of a result depend on in this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    processor = torch.backends.cpu.get_cpu_capability()
    return MadeBy(__version__, torch.__version__, name, processor, n_threads)


def made_from(plan: Plan, session: Session) -> dict[str, Any]:
    """Everything that the bytes of the output depend on, as JSON values."""
    recipe = recipe_to_dict(plan.recipe)
    # The path of the output, the memory budget and the measuring change no byte. `made_by` has the device.
    recipe["output"].pop("path")
    for name in ("device", "memory", "measure"):
        recipe.pop(name)
    found = plan.preflight
    stamps = {str(path): stamp for checkpoint in found.checkpoints for path, stamp in checkpoint.stamps.items()}
    places = [(entry.output, entry.role, entry.rule, entry.sources, entry.parts) for entry in plan.entries]
    order = [output.name for output in plan.outputs]
    # Whose row is which token follows from the tokenizers, which may have changed.
    rows = [(name, mapped.digest) for checkpoint in found.checkpoints for name, mapped in checkpoint.rows.items()]
    made: dict[str, Any] = {
        **made_by(plan.device, session.n_threads).facts(),
        "the recipe": recipe,
        "the input": {path: dataclasses.astuple(stamp) for path, stamp in stamps.items()},
        "the plan": hashlib.sha256(repr((places, order, rows)).encode()).hexdigest(),
    }
    plain: dict[str, Any] = to_jsonable_python(made)
    return plain


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested tables, and lists of tables. A key is the path to its value."""
    pairs: Iterable[tuple[Any, Any]]
    rows: dict[str, Any] = {}
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        pairs = enumerate(value, start=1)
    else:
        return {name: value}
    for key, inner in pairs:
        rows |= _flat(inner, f"{name}: {key}" if name else str(key))
    return rows


def _change(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key.startswith(("the input", "the plan")):
        return f"{key.removeprefix('the input: ')} was changed"
    return f"{key} was {before.get(key)} and is {now.get(key)}"


class ProgressFile:
    """Records on disk which tensors are finished. Open it with `progress_file`."""

    def __init__(self, file: IO[bytes], writer: WeightsWriter) -> None:
        self._file = file
        self._writer = writer
        self._synced = time.monotonic()

    def add(self, finished: Finished) -> None:
        """Record that a tensor is written. Raises OSError."""
        self._file.write(_line(_FINISHED, finished))
        if time.monotonic() - self._synced > SYNC_S:
            self._writer.sync()
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


@contextlib.contextmanager
def progress_file(
    partial: Path, plan: Plan, session: Session, writer: WeightsWriter, kept: Iterable[Finished]
) -> Iterator[ProgressFile]:
    """Open the progress file of a run in `partial`, starting with the tensors in `kept`. It replaces an older one.

    Raises:
        OSError: it cannot be written.
    """
    path, fresh = partial / PROGRESS_NAME, partial / f"{PROGRESS_NAME}.new"
    with open(fresh, "xb", buffering=0) as file:
        start = Start(made_from(plan, session), len(plan.entries))
        file.write(b"".join([_line(_START, start), *(_line(_FINISHED, one) for one in kept)]))
        os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(partial)
        yield ProgressFile(file, writer)


def _line(adapter: TypeAdapter[Any], value: object) -> bytes:
    return adapter.dump_json(value, exclude_defaults=True) + b"\n"
