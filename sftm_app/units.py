"""Counts, sizes and durations in words."""

from __future__ import annotations

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MAX_DIGITS = 12


def format_count(n: int, noun: str) -> str:
    """A number of things whose plural ends in s: "1 task", "3 tasks"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_bytes(n: int, digits: int = 3) -> str:
    """A number of bytes in powers of ten, with this many significant digits: "12.8 MB"."""
    for size, unit in _UNITS:
        rounded = float(f"{n / size:.{digits}g}")
        if rounded >= 1:
            return f"{n / size:.0f} {unit}" if rounded >= 10**digits else f"{rounded:.{digits}g} {unit}"
    return f"{n} bytes"


def format_distinct(n: int, other: int) -> tuple[str, str]:
    """Two different numbers of bytes, with enough digits to see that they differ."""
    digits = next((k for k in range(3, MAX_DIGITS) if format_bytes(n, k) != format_bytes(other, k)), MAX_DIGITS)
    return format_bytes(n, digits), format_bytes(other, digits)


def format_duration(seconds: float) -> str:
    """An estimated time, rounded as estimates are: "under 1 s", "about 40 s", "about 3 min", "about 2.5 h"."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 99.5:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5970 else f"about {seconds / 3600:.1f} h"
