"""How much memory a run takes: the peak over what the process held when it began."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

_INTERVAL_S = 0.005
# Blocks of this size and above come from the system and go back to it. glibc would raise its own limit to 32 MB and
# keep what is freed in pieces: up to half as much again as the tensors alone, for 8 % less time.
_BLOCK_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3


class MemoryMeter:
    """Watches the memory of a `with` block; on CUDA the device's, elsewhere the process's own.

    `peak_bytes`: the most that was held above the start so far. On Linux the kernel keeps the exact figure; elsewhere,
    and where its counter cannot be reset, a thread looks every few milliseconds.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._highest = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryMeter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        _tune_allocator()
        self._start = self._highest = _resident()
        self._kernel = _reset_high_water_mark()
        if not self._kernel:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    @property
    def peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._start
        now = _high_water_mark() if self._kernel else max(self._highest, _resident())
        return max(0, now - self._start)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._highest = max(self._highest, _resident())


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _tune_allocator() -> None:
    """On glibc: large blocks go back to the system when they are freed, and what was freed before does now.

    For the rest of the process; a run would otherwise seem to take nothing of what an earlier one left.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
        library.malloc_trim(0)


def _reset_high_water_mark() -> bool:
    """Whether Linux starts counting the peak anew; a container may forbid it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water_mark() > 0
    except (OSError, ValueError):
        return False


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
