"""Starts the process that contacts the hub, for one request, and stops it within two seconds.

This process stays offline (HF_HUB_OFFLINE=1 from the start); that one goes online, because a person asked for it.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator

import psutil

from sftm_app.errors import Cancelled, HubError, JobError, ResourceError
from sftm_app.hub.hub_files import unfinished_files
from sftm_app.hub.hub_messages import ANSWER, REQUEST, Answer, Request
from sftm_app.processes import python_command
from sftm_app.weights.hub_names import hub_cache

# Cancelling takes at most two seconds in total. The process gets most of them to exit by itself.
POLITE_S = 1.2


class HubProcess:
    """Runs one request. `cancel` may be called from any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False
        self._lock, self._ending = threading.Lock(), threading.Lock()

    def answers(self, request: Request) -> Iterator[Answer]:
        """Start the process, send the request, and yield its answers until it is done.

        Raises:
            Cancelled: `cancel` was called.
            HubError, ResourceError: the request failed.
            JobError: the process died.
        """
        with self._lock:
            if self._cancelled:
                raise Cancelled("Cancelled.")
            self._process = process = _spawn()
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(REQUEST.dump_json(request).decode() + "\n")
                process.stdin.flush()
            for line in process.stdout:
                answer = ANSWER.validate_json(line)
                if answer.event == "done":
                    return
                if answer.event == "failed":
                    raise (ResourceError if answer.disk_full else HubError)(answer.message)
                yield answer
            if self._cancelled:
                raise Cancelled("Cancelled. Files that were complete are kept.")
            raise JobError(f"The process that contacts the hub died (code {process.wait()}). Try again.")
        finally:
            self._end(process)
            process.stdout.close()

    def cancel(self) -> None:
        """Stop within two seconds, now or as soon as a process starts. Complete files are kept."""
        with self._lock:
            self._cancelled = True
            process = self._process
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Ask the process to exit by closing its standard input; kill it if it does not."""
        with self._ending:
            with contextlib.suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(POLITE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(process.pid).suspend()  # so that it starts no other file
                unfinished = unfinished_files(hub_cache(), process.pid)
                process.kill()
                process.wait()
                for path in unfinished:
                    path.unlink(missing_ok=True)


def _spawn() -> subprocess.Popen[str]:
    online = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "critical"}
    return subprocess.Popen(
        python_command("sftm_app.hub.hub_worker", online),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Ctrl-C at the terminal goes to this process, which then ends that one.
        start_new_session=True,
    )
