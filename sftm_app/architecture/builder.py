"""Asks transformers about a config in a process of its own, which may neither run for long nor take much memory.

A config.json may ask for a billion layers, or a name in it may make a library look for weights or code. So nothing is
built in this process: the other one has limits, is offline, and ends when nothing was asked for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from sftm_app.architecture.architecture import Architecture, UnknownModelType
from sftm_app.architecture.as_json import architecture_from_json, architecture_to_json
from sftm_app.errors import CheckpointError
from sftm_app.processes import limit_memory, python_command, stay_offline

# Building takes seconds at most, and a hundred megabytes; importing transformers on a busy machine takes longer.
BUILD_LIMIT_S = 30.0
START_LIMIT_S = 180.0
MEMORY_LIMIT_BYTES = 4 << 30
IDLE_S = 20.0

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_ENVIRONMENT = {**_OFFLINE, "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
_ERRORS: dict[str, type[CheckpointError]] = {"CheckpointError": CheckpointError, "UnknownModelType": UnknownModelType}


class ArchitectureBuilder:
    """Answers as `read_architecture` does. The process is started when it is needed. Threads may share a builder.

    Args:
        build_limit_s: how long one answer may take.
        memory_limit_bytes: how much memory the process may take on top of what it starts with, where the system can
            limit it.
    """

    def __init__(self, build_limit_s: float = BUILD_LIMIT_S, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._build_limit_s, self._memory_limit_bytes = build_limit_s, memory_limit_bytes
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def read(self, config: dict[str, Any], names: Iterable[str], untied: frozenset[str]) -> Architecture:
        """Build the model of a config.json; see `read_architecture`.

        Raises:
            UnknownModelType, CheckpointError: as `read_architecture`; or the config asks for too much.
        """
        question = json.dumps({"config": config, "names": list(names), "untied": sorted(untied)})
        with self._lock:
            line = self._ask(question)
        if not line:
            raise CheckpointError(
                f"The {str(config.get('model_type'))[:80]!r} model of config.json cannot be built within "
                f"{self._build_limit_s:.0f} seconds and {self._memory_limit_bytes / 2**30:.0f} GB of memory. Check the "
                "sizes in config.json, such as the number of layers, or download it again."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return architecture_from_json(answer["architecture"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, question: str) -> str:
        """The answer, as a line; "" if the process was killed or ended over the question."""
        for _ in range(2):
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                with _killing(process, self._build_limit_s):
                    process.stdin.write(question + "\n")
                    process.stdin.flush()
                    # The process says first that it has the question: it may have ended in the same moment, idle.
                    is_taken = bool(process.stdout.readline())
                    line = process.stdout.readline() if is_taken else ""
            except (BrokenPipeError, ValueError):
                is_taken, line = False, ""
            if line:
                return line
            self._end()
            if is_taken:
                break
        return ""

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = process = subprocess.Popen(
            python_command(__name__, _ENVIRONMENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError), _killing(process, START_LIMIT_S):
            process.stdin.write(f"{self._memory_limit_bytes}\n")
            process.stdin.flush()
            process.stdout.readline()  # it has imported transformers
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


@contextlib.contextmanager
def _killing(process: subprocess.Popen[str], limit_s: float) -> Iterator[None]:
    """Kill the process if the block takes longer than `limit_s`: its pipes then end."""
    timer = threading.Timer(limit_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main() -> None:
    """Answer questions from standard input, one a line, until it closes or nothing was asked for a while."""
    # What libraries print goes to the terminal, not among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    stay_offline()
    warnings.simplefilter("ignore")
    limit = int(sys.stdin.readline() or 0)
    from sftm_app.architecture.reading import read_architecture

    limit_memory(limit)
    _say(answers, {"ready": True})
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while question := questions.get(timeout=IDLE_S):
            _say(answers, {"taken": True})
            given = json.loads(question)
            try:
                found = read_architecture(given["config"], given["names"], frozenset(given["untied"]))
                answer = {"architecture": architecture_to_json(found)}
            except CheckpointError as error:
                if isinstance(error.__context__, MemoryError):
                    os._exit(1)
                answer = {"error": type(error).__name__, "message": str(error)}
            _say(answers, answer)
    os._exit(0)  # a thread still waits for input


def _listen(questions: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        questions.put(line)
    questions.put("")


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
