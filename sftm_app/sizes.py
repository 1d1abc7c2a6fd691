"""Numbers of bytes in words."""

from __future__ import annotations

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
MAX_DIGITS = 12


def in_bytes(n: int, digits: int = 3) -> str:
    """A number of bytes as people read it: in powers of ten, with so many significant digits."""
    for size, unit in _UNITS:
        rounded = float(f"{n / size:.{digits}g}")
        if rounded >= 1:
            return f"{n / size:.0f} {unit}" if rounded >= 10**digits else f"{rounded:.{digits}g} {unit}"
    return f"{n} bytes"


def told_apart(n: int, other: int) -> tuple[str, str]:
    """Two different numbers of bytes, with as many digits as it takes to see that they differ."""
    digits = next((k for k in range(3, MAX_DIGITS) if in_bytes(n, k) != in_bytes(other, k)), MAX_DIGITS)
    return in_bytes(n, digits), in_bytes(other, digits)
