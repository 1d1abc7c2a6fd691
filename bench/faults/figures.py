"""What an attack found: one line of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        what: what was attacked.
        count: how many attacks.
        wrong: a sentence for each attack that succeeded.
        note: figures such as the slowest answer.
    """

    what: str
    count: int
    wrong: tuple[str, ...]
    note: str = ""

    def line(self, seconds: float) -> str:
        """The line as text."""
        state = "holds" if not self.wrong else f"BROKEN {len(self.wrong)} times"
        return f"| {self.what} | {self.count} | {state} | {self.note} | {seconds:.0f} s |"


Part = Callable[[bool], Figure]


def show(parts: Iterable[tuple[str, Part]], quick: bool) -> int:
    """Run parts and print the table as they finish. Returns how many are broken."""
    print("| what | attacks | result | figures | time |", "|---|---|---|---|---|", sep="\n", flush=True)
    broken = 0
    for _, part in parts:
        started = time.perf_counter()
        figure = part(quick)
        print(figure.line(time.perf_counter() - started), flush=True)
        for sentence in figure.wrong[:20]:
            print(f"    {sentence}", flush=True)
        broken += bool(figure.wrong)
    return broken
