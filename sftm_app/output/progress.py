"""How far a merge is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sftm_app.planning.plan import Plan, PlanEntry

LAST_STEP = "Writing the report"
# The first tensors say little about the pace of the others. So the prediction counts as if this share of the merge had
# been done at the predicted pace. The time left is then at most the prediction plus the time elapsed / TRUST.
TRUST = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a merge is after one more tensor.

    Attributes:
        done, total: tensors.
        name: of the last tensor, or LAST_STEP when every tensor is merged but the files are not complete yet.
        fraction: how far along the merge is, if it runs as predicted; 0..1.
        elapsed_s, remaining_s: seconds.
    """

    done: int
    total: int
    name: str
    fraction: float
    elapsed_s: float
    remaining_s: float


@dataclass
class Clock:
    """Counts the finished entries of a plan and their predicted seconds, from its start on."""

    plan: Plan
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    work: float = 0.0

    def __post_init__(self) -> None:
        self._work = {entry.name: entry.seconds for entry in self.plan.cost.entries}
        self._total = sum(self._work.values())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def after(self, entry: PlanEntry) -> Progress:
        """Count one more entry."""
        self.done, self.work = self.done + 1, self.work + self._work[entry.name]
        fraction = self.work / self._total
        return Progress(self.done, len(self._work), entry.name, fraction, self.elapsed_s, self._left(self.work))

    def last(self) -> Progress:
        """Say that every tensor is merged."""
        left = self._left(self._total)
        return Progress(len(self._work), len(self._work), LAST_STEP, 1.0, self.elapsed_s, left)

    def _left(self, work: float) -> float:
        predicted = self.plan.cost.seconds
        trusted = TRUST * predicted
        pace = (self.elapsed_s + trusted) / (work + trusted)
        return pace * max(0.0, predicted - work)
