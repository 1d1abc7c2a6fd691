"""Worker processes, one of them warm: importing torch and transformers takes seconds that nobody should wait for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading

import psutil

from sftm_app.errors import JobError
from sftm_app.jobs.folder import RunFolder, identity


class Workers:
    """Starts worker processes. Once `prepare` was called, the next one has its imports behind it.

    An idle worker waits for a folder's name on its standard input. It leaves by itself when this process ends, for then
    the pipe closes.
    """

    def __init__(self) -> None:
        self._idle: subprocess.Popen[bytes] | None = None
        self._keep_warm = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Have a warm worker at hand from now on."""
        with self._lock:
            self._keep_warm = True
            if self._idle is None or self._idle.poll() is not None:
                self._idle = _spawn()

    def close(self) -> None:
        """Send the idle worker home."""
        with self._lock:
            self._keep_warm = False
            idle, self._idle = self._idle, None
        if idle is not None:
            _hand_over(idle, b"")
            idle.wait(10)

    def launch(self, folder: RunFolder) -> None:
        """Give a run to the warm worker, or to a new one.

        Raises
            OSError: no process can be started, or the run's folder cannot be written.
            JobError: the new process ended at once.
        """
        with self._lock:
            process, self._idle = self._idle, None
        if process is None or process.poll() is not None or not _give(process, folder):
            process = _spawn()
            if not _give(process, folder):
                raise JobError(f"it ended at once, with code {process.wait()}")
        threading.Thread(target=self._reap, args=(process,), name=f"reap-{process.pid}", daemon=True).start()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Leave no zombie behind; the next worker is warmed only now, so that it takes nothing from the run."""
        process.wait()
        if self._keep_warm:
            self.prepare()


def _line(folder: RunFolder) -> bytes:
    return (json.dumps(os.path.abspath(folder.path)) + "\n").encode()


def search_path() -> list[str]:
    """Where a worker looks for modules: where this process does, but not in the folder it happens to be started from.

    `python -m` would put that folder first, and a file `random.py` of the person's would break or take over the run.
    The folder this package lies in stays, so that a checkout that is not installed finds itself.
    """
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # removed meanwhile
        here = ""
    entries = [os.path.abspath(entry) for entry in sys.path if os.path.isabs(entry) or (entry and here)]
    kept = [entry for entry in entries if entry == home or os.path.realpath(entry) != here]
    return kept if home in kept else [home, *kept]


def _spawn() -> subprocess.Popen[bytes]:
    # The folder it is started from stands first in a process's path only after `site` is done; it is replaced at once.
    code = "import sys; sys.path[:] = sys.argv[1:]; from sftm_app.jobs.worker import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *search_path()],
        stdin=subprocess.PIPE,
        # Its own session: Ctrl-C at the server's terminal does not reach it, the run goes on.
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )


def _give(process: subprocess.Popen[bytes], folder: RunFolder) -> bool:
    # Said here, not by the worker: until a cold one speaks it could be neither seen nor stopped. And said before it
    # knows the run: a warm one may fail within a millisecond, and its word must be the last.
    try:
        with contextlib.suppress(psutil.Error):
            folder.append("started", **identity(psutil.Process(process.pid)))
    except OSError:
        _hand_over(process, b"")  # sends it home
        raise
    return _hand_over(process, _line(folder))


def _hand_over(process: subprocess.Popen[bytes], line: bytes) -> bool:
    """Write the line and close the pipe; False when the process is gone."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(line)
    except (BrokenPipeError, ValueError):
        return False
    return True
