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
# keep what is freed in pieces: up to half as much again as the tensors alone.
_BLOCK_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3


class MemoryMeter:
    """Watches the memory of a `with` block; on CUDA the device's, elsewhere the process's own.

    On Linux the kernel keeps the exact peak, from which the pages of files are taken off: of the libraries' code, they
    come and go as the system likes. Elsewhere, and where the kernel's counter cannot be reset, a thread looks every few
    milliseconds at all that is resident.
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
        self._kernel = _reset_high_water_mark()
        self._start = self._highest = _since_reset() if self._kernel else _resident()
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

    def look(self) -> int:
        """The most that was held above the start so far, in bytes.

        To be called now and then: how many pages of files there were at the peak is only known soon after it.
        """
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._start
        self._highest = max(self._highest, _since_reset() if self._kernel else _resident())
        if self._kernel:
            _reset_high_water_mark()
        return self._highest - self._start

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
        return _since_reset() > 0
    except (OSError, KeyError, ValueError):
        return False


def _since_reset() -> int:
    """The most that was resident since the last reset, without the pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("VmHWM:", "RssFile:")}
    return sizes["VmHWM:"] - sizes["RssFile:"]
