"""The process that talks to the hub; see sftm_app.hub.fetching for who starts it.

The app itself never goes online. This process gets one request on its standard input, answers with a JSON text a line
on its standard output, and leaves at once when its standard input closes: that is how it is cancelled, and it cannot
outlive the app.

Request: {"action": "look" | "fetch", "cache": folder, "folder": folder for skeletons, "refs": [[repo, revision], ...],
"commits": [...], "files": [{name: bytes}, ...]}; the last two for "fetch" only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from sftm_app.errors import ResourceError, SFTMError

REPORT_EVERY_S = 0.2
# Small answers mostly: what is waited for is the hub, not the line.
LOOKS_AT_ONCE = 4


class _Answers:
    """Writes one JSON text a line; safe to use from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._done, self._said_at = 0, 0.0

    def say(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()

    def count(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            due = time.monotonic() - self._said_at > REPORT_EVERY_S
            if due:
                self._said_at = time.monotonic()
            done = self._done
        if due:
            self.say("progress", done=done)


def _look(request: dict[str, Any], answers: _Answers) -> None:
    from sftm_app.hub.hub import cached_snapshot, look_up
    from sftm_app.hub.hub_errors import is_unreachable
    from sftm_app.weights.hub_names import HubRef

    def look(index: int) -> None:
        ref, cache = HubRef(*request["refs"][index]), Path(request["cache"])
        try:
            found = look_up(ref, Path(request["folder"]) / str(index), cache)
        except SFTMError as error:
            kept = cached_snapshot(ref, cache) if is_unreachable(error) else None
            if kept is None:
                answers.say("refused", index=index, message=str(error))
            else:
                note = f"{ref}: the hub cannot be reached; the copy in the cache is taken."
                answers.say("cached", index=index, folder=str(kept), note=note)
            return
        answers.say(
            "looked",
            index=index,
            revision=found.ref.revision,
            commit=found.commit,
            files=found.files,
            missing_bytes=found.missing_bytes,
            note=found.note,
        )

    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        list(pool.map(look, range(len(request["refs"]))))


def _fetch(request: dict[str, Any], answers: _Answers) -> None:
    from sftm_app.hub.hub import download
    from sftm_app.hub.hub_files import Found
    from sftm_app.weights.hub_names import HubRef

    for index, ref in enumerate(request["refs"]):
        found = Found(HubRef(*ref), request["commits"][index], request["files"][index], 0)
        answers.say("fetching", index=index)
        answers.say("fetched", index=index, folder=str(download(found, Path(request["cache"]), answers.count)))


def _leave_when_told(cache: Path) -> None:
    from sftm_app.hub.hub_files import unfinished_files

    sys.stdin.read()
    # Twice: another thread may have begun a file meanwhile.
    for path in (path for _ in range(2) for path in unfinished_files(cache)):
        with contextlib.suppress(OSError):
            path.unlink()
    os._exit(130)


def main() -> None:
    """Carry out the one request on standard input."""
    # Whatever a library prints goes to the terminal, not among the answers.
    answers = _Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    threading.Thread(target=_leave_when_told, args=(Path(request["cache"]),), daemon=True).start()
    try:
        {"look": _look, "fetch": _fetch}[request["action"]](request, answers)
    except SFTMError as error:
        answers.say("failed", message=str(error), full=isinstance(error, ResourceError))
    except Exception as error:
        answers.say("failed", message=f"Unexpected {type(error).__name__} while reading the hub: {error}", full=False)
        raise
    else:
        answers.say("done")


if __name__ == "__main__":
    main()
