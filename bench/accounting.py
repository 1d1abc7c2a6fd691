"""Measure whole processes from outside: wall time, processor time and peak resident memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# A process inherits the peak memory of the process that started it, so a small one starts it.
_LAUNCHER = """
import json, os, sys, time
started = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
spent = {
    "code": os.waitstatus_to_exitcode(status),
    "seconds": time.perf_counter() - started,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}
with open(sys.argv[1], "w") as file:
    json.dump(spent, file)
"""


@dataclass(frozen=True)
class Spent:
    """What one process took, with the children that it waited for.

    Attributes:
        code: its exit code.
        seconds: wall time.
        cpu_seconds: processor time.
        peak_bytes: peak resident memory, with pages of mapped files.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def spend(command: Sequence[str | Path], log: Path, environment: Mapping[str, str], cwd: Path) -> Spent:
    """Run a command to its end. POSIX only.

    Args:
        command: the command and its arguments.
        log: the file for its output; the figures go to a .json file of the same name.
        environment: variables to add to this process's own.
        cwd: where it runs.

    Raises:
        SystemExit: it could not be started.
    """
    figures = log.with_suffix(".json")
    figures.unlink(missing_ok=True)
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(figures), *map(str, command)]
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        subprocess.run(
            launch, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=cwd,
            env={**os.environ, **environment}, check=False,
        )  # fmt: skip
    if not figures.exists():
        raise SystemExit(f"{command[0]} could not be started. See {log}.")
    return Spent(**json.loads(figures.read_text()))


def threads(n_threads: int) -> dict[str, str]:
    """Environment variables: every library computes with `n_threads` threads, and nothing contacts a model hub."""
    number = str(n_threads)
    return {
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "OPENBLAS_NUM_THREADS": number,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
