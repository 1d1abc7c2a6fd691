"""How fast this machine computes: measured once in a fraction of a second, and kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import torch

from sftm_app.caching import write_text
from sftm_app.linalg.parallel import single_threaded

SIDE = 384
HASH_BYTES = 4_000_000
N_TIMES = 3
# Raise this when something else is measured, or in another way.
VERSION = 2


@dataclass(frozen=True)
class MachineSpeed:
    """Speeds of this machine.

    Attributes:
        products: floating-point operations a second of float32 matrix products.
        eigen: the same of float64 eigendecompositions of symmetric k x k matrices, counted as k^3.
        hashing: bytes a second of SHA-256.

    All by one thread: while other programs run, two threads wait for each other at every small step.
    """

    products: float
    eigen: float
    hashing: float


def measure_speed(n_threads: int) -> MachineSpeed:
    """Measure this machine: products, eigendecompositions and hashes of one size, the best of a few.

    Args:
        n_threads: torch's threads, to which it returns afterwards.
    """
    with single_threaded(n_threads):
        return _measure_one_thread()


def _measure_one_thread() -> MachineSpeed:
    matrix = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    symmetric = (matrix + matrix.T).double()
    sample = bytes(HASH_BYTES)
    return MachineSpeed(
        products=2 * SIDE**3 / _best(lambda: matrix @ matrix),
        eigen=SIDE**3 / _best(lambda: torch.linalg.eigh(symmetric)),
        hashing=HASH_BYTES / _best(lambda: hashlib.sha256(sample).digest()),
    )


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, of this thread alone, so that other programs hardly count."""
    times = []
    for _ in range(N_TIMES + 1):  # the first one warms up
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return max(min(times), 1e-9)


class SpeedFile:
    """The speed of this machine, measured when it is first asked for. Safe under threads.

    Args:
        path: a JSON file that keeps it between processes, or None.
        n_threads: torch's threads.
    """

    def __init__(self, path: Path | None, n_threads: int) -> None:
        self._path = path
        self._n_threads = n_threads
        self._key = repr((VERSION, torch.__version__, platform.node(), platform.processor()))
        self._known: MachineSpeed | None = None
        self._lock = Lock()

    def get(self) -> MachineSpeed:
        """The speed, from memory, from the file, or measured now."""
        with self._lock:
            if self._known is None:
                self._known = self._read() or self._measure()
            return self._known

    def _read(self) -> MachineSpeed | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if self._path is not None:
                values = json.loads(self._path.read_text("utf-8"))[self._key]
                speed = MachineSpeed(**{name: float(value) for name, value in values.items()})
                return speed if all(0 < value < math.inf for value in asdict(speed).values()) else None
        return None

    def _measure(self) -> MachineSpeed:
        speed = measure_speed(self._n_threads)
        if self._path is not None:
            with contextlib.suppress(OSError):
                write_text(self._path, json.dumps({self._key: asdict(speed)}))
        return speed
