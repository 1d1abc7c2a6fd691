"""The process that contacts the hub. See hub_process for who starts it, and hub_messages for what it reads and writes.

The app itself never goes online. This process reads one request from its standard input and writes its answers to its
standard output. It exits as soon as its standard input closes: that is how it is cancelled, and it cannot outlive the
app.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from sftm_app.errors import ResourceError, SFTMError
from sftm_app.hub.hub import download, look_up
from sftm_app.hub.hub_errors import is_unreachable
from sftm_app.hub.hub_files import unfinished_files
from sftm_app.hub.hub_messages import ANSWER, REQUEST, Answer, Request
from sftm_app.weights.hub_names import cached_snapshot

REPORT_EVERY_S = 0.2
# Looking waits for the hub rather than for the line.
LOOKS_AT_ONCE = 4


class _Answers:
    """Writes answers. Threads may share it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._done_bytes, self._reported_at = 0, 0.0

    def send(self, answer: Answer) -> None:
        with self._lock:
            self._stream.write(ANSWER.dump_json(answer).decode() + "\n")
            self._stream.flush()

    def count(self, n_bytes: int) -> None:
        """Add to the written bytes, and report them now and then."""
        with self._lock:
            self._done_bytes += n_bytes
            done_bytes, is_due = self._done_bytes, time.monotonic() - self._reported_at > REPORT_EVERY_S
            if is_due:
                self._reported_at = time.monotonic()
        if is_due:
            self.send(Answer("progress", done_bytes=done_bytes))


def _look(request: Request, answers: _Answers) -> None:
    assert request.skeletons is not None
    skeletons = request.skeletons

    def look(index: int) -> None:
        ref = request.refs[index]
        try:
            answer = Answer("looked", index, look_up(ref, skeletons / str(index), request.cache))
        except SFTMError as error:
            folder = cached_snapshot(ref, request.cache) if is_unreachable(error) else None
            answer = Answer("cached" if folder else "refused", index, folder=folder, message=str(error))
        answers.send(answer)

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        list(pool.map(look, range(len(request.refs))))


def _fetch(request: Request, answers: _Answers) -> None:
    for index, wanted in enumerate(request.downloads):
        answers.send(Answer("fetched", index, folder=download(wanted, request.cache, answers.count)))


def _exit_when_cancelled(cache: Path) -> None:
    sys.stdin.read()
    # Twice: another thread may have started a file meanwhile.
    for path in (path for _ in range(2) for path in unfinished_files(cache)):
        with contextlib.suppress(OSError):
            path.unlink()
    os._exit(130)


def main() -> None:
    """Carry out the one request on standard input."""
    # What libraries print goes to the terminal, not among the answers.
    answers = _Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return
    request = REQUEST.validate_json(line)
    threading.Thread(target=_exit_when_cancelled, args=(request.cache,), daemon=True).start()
    try:
        (_look if request.refs else _fetch)(request, answers)
    except SFTMError as error:
        answers.send(Answer("failed", message=str(error), disk_full=isinstance(error, ResourceError)))
    except Exception as error:
        answers.send(Answer("failed", message=f"Unexpected {type(error).__name__} while contacting the hub: {error}"))
        raise
    else:
        answers.send(Answer("done"))


if __name__ == "__main__":
    main()
