"""Kills and disk errors at every touch of the disk of a merge into three shards.

A touch opens, writes, resizes, closes, syncs, renames, removes or makes. At each one, in a process of its own, the
process is killed (in the middle of a write), or the disk says that it is full or broken. Afterwards the output is
absent or whole, an older output is as it was, and what resumes has the same bytes as a run that was never disturbed.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.faults.figures import Figure
from bench.faults.models import make_models, plain_session, recipe_of
from sftm_app.errors import SFTMError
from sftm_app.output.save import save
from sftm_app.pipeline import prepare
from sftm_app.planning.plan import Plan
from sftm_app.session import Session

ACTIONS = {"SIGKILL": 0, "ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
TYPED, WHOLE, UNTYPED = 3, 0, 4
_AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


class Disk:
    """Counts the touches of a folder, and fails at one of them."""

    def __init__(self, root: Path, at: int, number: int) -> None:
        self._root, self._at, self._number, self.count = str(root), at, number, 0

    def touch(self) -> None:
        """Note a touch, and fail if it is the one."""
        self.count += 1
        if self.count == self._at:
            if self._number:
                raise OSError(self._number, os.strerror(self._number))
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Watch this process from now on."""
        opened, fsync, allocate = io.open, os.fsync, os.posix_fallocate

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _AUDITED and self._root in str(arguments[0]):
                self.touch()

        def open_(file: Any, mode: str = "r", *others: Any, **options: Any) -> Any:
            if self._root not in str(file) or not set(mode) & set("wxa+"):
                return opened(file, mode, *others, **options)
            self.touch()
            return _File(opened(file, mode, *others, **options), self)

        def sync(descriptor: int) -> None:
            self.touch()
            fsync(descriptor)

        def reserve(*arguments: int) -> None:
            self.touch()
            allocate(*arguments)

        sys.addaudithook(watch)
        builtins.open = io.open = open_
        os.fsync, os.posix_fallocate = sync, reserve  # type: ignore[assignment]


class _File:
    """An open file whose writes are counted; a kill comes in the middle of one."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        half = len(data) // 2
        written = self._file.write(data[:half])
        self._file.flush()
        self._disk.touch()
        return written + self._file.write(data[half:])

    def truncate(self, *size: int) -> Any:
        self._disk.touch()
        return self._file.truncate(*size)

    def close(self) -> None:
        closed = self._file.closed
        self._file.close()
        if not closed:
            self._disk.touch()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def attack_kills(quick: bool) -> Figure:
    """Fail at every touch, or at one in 61 of them."""
    with tempfile.TemporaryDirectory(prefix="sftm-faults-") as name:
        root, session = Path(name), plain_session()
        files = make_models(root / "models")
        plan = prepare(recipe_of(files, method="average", output={"max_shard_size": "12KB"}), session)
        old = prepare(recipe_of(files, method="average", output={"dtype": "float16"}), session)
        merge(plan, session, root / "whole")
        merge(old, session, root / "older")
        n = count_touches(plan, session, root / "counted" / "out")
        points = [(k, action, replacing) for action in ACTIONS for replacing in (False, True) for k in range(1, n + 1)]
        chosen = points[::61] if quick else points
        wrong = [said for point in chosen for said in _attack(plan, old, session, root, *point)]
    note = f"{n} touches x {len(ACTIONS)} failures x (new output, replaced output)"
    return Figure("kill and fault points of a 3-shard merge", len(chosen), tuple(wrong), note)


def merge(plan: Plan, session: Session, output: Path, **options: Any) -> None:
    """Merge to the end."""
    for _ in save(plan, session, output, **options):
        pass


def count_touches(plan: Plan, session: Session, output: Path) -> int:
    """How often a merge touches the disk."""
    output.parent.mkdir()
    reader, writer = os.pipe()

    def work() -> None:
        disk = Disk(output.parent, 0, 0)
        disk.install()
        merge(plan, session, output)
        os.write(writer, str(disk.count).encode())

    apart(work)
    os.close(writer)
    with os.fdopen(reader) as told:
        return int(told.read())


def apart(work: Callable[[], None]) -> int:
    """Do the work in a copy of this process. Returns its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = UNTYPED
        try:
            work()
            code = WHOLE
        except SFTMError:
            code = TYPED
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _attack(plan: Plan, old: Plan, session: Session, root: Path, k: int, action: str, replacing: bool) -> Iterator[str]:
    place = root / f"{action}{k}{'r' * replacing}"
    place.mkdir()
    output = place / "out"
    if replacing:
        merge(old, session, output)

    def work() -> None:
        Disk(place, k, ACTIONS[action]).install()
        merge(plan, session, output, replace=replacing)

    code, said = apart(work), f"{action} at touch {k}"
    expected = (-signal.SIGKILL,) if action == "SIGKILL" else (TYPED, WHOLE)
    if code not in expected:
        yield f"{said}: ended with {code} instead of {expected}"
    there = contents(output) if output.exists() else None
    allowed = [contents(root / "whole"), contents(root / "older") if replacing else None]
    if there not in allowed and not (replacing and there is None and (place / "out.replaced").is_dir()):
        yield f"{said}: the output is neither absent nor whole"
    if there != allowed[0]:
        merge(plan, session, output, resume=True, replace=replacing)
        if contents(output) != allowed[0]:
            yield f"{said}: what was resumed has other bytes"
    if left := [path.name for path in place.iterdir() if path.name not in ("out", "out.replaced")]:
        yield f"{said}: leaves {left}"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of an output, without the times in its report and card."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("README.md", None)
    report = json.loads(found.pop("sftm_report.json", b"{}"))
    names = [record["name"] for record in report.get("tensors", ())]
    return found | {"tensors of the report": json.dumps(names).encode()}
