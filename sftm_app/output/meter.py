"""Measure the memory of a run: its peak above what the process held before."""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

_INTERVAL_S = 0.005
# Blocks of at least this size go back to the system when they are freed. By itself, glibc would raise this limit to
# 32 MB and keep freed memory in pieces, up to half as much again as the tensors need.
_BLOCK_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3


class MemoryMeter:
    """Measures the memory of a `with` block: the device's on CUDA, otherwise that of this process.

    Linux counts the exact peak of a process. Pages of files, such as the code of libraries, are subtracted, because the
    system loads and drops them as it likes. On other systems, and where the kernel's counter cannot be reset, a thread
    reads the process's size every few milliseconds.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryMeter:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        _tune_allocator()
        self._kernel_counts = _reset_peak()
        self._start = self._peak = _peak_since_reset() if self._kernel_counts else _resident()
        if not self._kernel_counts:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def look(self) -> int:
        """The peak so far, in bytes above the start.

        Call it often: the number of file pages at the peak is only known soon after it.
        """
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._start
        self._peak = max(self._peak, _peak_since_reset() if self._kernel_counts else _resident())
        if self._kernel_counts:
            _reset_peak()
        return self._peak - self._start

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _tune_allocator() -> None:
    """On glibc, for the rest of the process: give large blocks back to the system when they are freed.

    Otherwise a run would reuse, and seem not to take, what an earlier one freed.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
        library.malloc_trim(0)


def _reset_peak() -> bool:
    """Reset the kernel's count of the peak, and say whether that worked. A container may forbid it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _peak_since_reset() > 0
    except (OSError, KeyError, ValueError):
        return False


def _peak_since_reset() -> int:
    """The peak of resident memory since the last reset, without the pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("VmHWM:", "RssFile:")}
    return sizes["VmHWM:"] - sizes["RssFile:"]
