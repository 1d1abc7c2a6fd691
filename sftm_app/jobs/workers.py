"""Worker processes. One is kept warm, because importing torch takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading

import psutil

from sftm_app.errors import JobError
from sftm_app.jobs.events import Started
from sftm_app.jobs.folder import RunFolder
from sftm_app.processes import python_command


class Workers:
    """Starts worker processes. After `prepare`, the next one has done its imports already.

    An idle worker waits for a folder's name on its standard input. It ends when this process ends, because the pipe is
    closed then.

    Args:
        at_once: how many runs may be carried out at once; None for as many as are started.
    """

    def __init__(self, at_once: int | None = None) -> None:
        self._at_once, self._n_running = at_once, 0
        self._idle: subprocess.Popen[bytes] | None = None
        self._keep_warm = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Keep a warm worker ready from now on."""
        with self._lock:
            self._keep_warm = True
            if self._idle is None or self._idle.poll() is not None:
                self._idle = _spawn()

    def close(self) -> None:
        """End the idle worker."""
        with self._lock:
            self._keep_warm = False
            idle, self._idle = self._idle, None
        if idle is not None:
            _send(idle, b"")
            idle.wait(10)

    def launch(self, folder: RunFolder) -> None:
        """Give a run to the warm worker, or to a new one.

        Raises:
            OSError: no process can be started, or the run's folder cannot be written.
            JobError: the new process ended at once, or too many runs are carried out.
        """
        with self._lock:
            if self._at_once is not None and self._n_running >= self._at_once:
                raise JobError("others are merging; wait for them")
            self._n_running += 1
            process, self._idle = self._idle, None
        try:
            self._launch(folder, process)
        except BaseException:
            with self._lock:
                self._n_running -= 1
            raise

    def _launch(self, folder: RunFolder, process: subprocess.Popen[bytes] | None) -> None:
        if process is None or process.poll() is not None or not _give(process, folder):
            process = _spawn()
            if not _give(process, folder):
                raise JobError(f"it ended at once, with code {process.wait()}")
        threading.Thread(target=self._reap, args=(process,), name=f"reap-{process.pid}", daemon=True).start()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Leave no zombie behind. The next worker is started only now, so that it takes nothing from the run."""
        process.wait()
        with self._lock:
            self._n_running -= 1
        if self._keep_warm:
            self.prepare()


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python_command("sftm_app.jobs.worker", {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}),
        stdin=subprocess.PIPE,
        # A session of its own: Ctrl-C at the server's terminal does not reach it, and the run continues.
        start_new_session=True,
    )


def _give(process: subprocess.Popen[bytes], folder: RunFolder) -> bool:
    # The event is written here and not by the worker: until a cold one has its imports, it could be neither seen nor
    # stopped. And it is written before the worker knows the run: a warm one may fail within a millisecond, and its
    # event must be the last.
    try:
        with contextlib.suppress(psutil.Error):
            folder.append(Started.by(psutil.Process(process.pid)))
    except OSError:
        _send(process, b"")  # ends it
        raise
    return _send(process, (json.dumps(os.path.abspath(folder.path)) + "\n").encode())


def _send(process: subprocess.Popen[bytes], line: bytes) -> bool:
    """Write the line and close the pipe; False if the process has ended."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(line)
    except (BrokenPipeError, ValueError):
        return False
    return True
