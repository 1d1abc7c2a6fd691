"""How far a merge is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sftm_app.planning.plan import Plan, PlanEntry

LAST_STEP = "Writing the report"
# The first tensors say little of how fast the others go. What was foretold counts as this share of the merge would
# that went just as foretold; so the time left is never more than the foretold seconds and 1 / TRUST times the elapsed.
TRUST = 0.2


@dataclass(frozen=True)
class Progress:
    """After `done` of `total` tensors, the last of which was `name`. `fraction` counts work, not tensors.

    remaining_s: None where nobody estimated what the merge takes. The last one has the name LAST_STEP: every tensor is
    merged, the files are still to be completed.
    """

    done: int
    total: int
    name: str
    fraction: float
    elapsed_s: float
    remaining_s: float | None


@dataclass
class Clock:
    """Counts the entries of a plan that are done and their work, from the moment it is made."""

    plan: Plan
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    work: float = 0.0

    def __post_init__(self) -> None:
        cost = self.plan.cost
        # Seconds where they were estimated, else numbers that are good for shares alone.
        self._work = (
            {each.name: each.seconds for each in cost.entries}
            if cost
            else {each.name: each.cost for each in self.plan.entries}
        )
        self._total = sum(self._work.values())

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def after(self, entry: PlanEntry) -> Progress:
        """Count one entry more. Entries that are copied and not counted are taken as done at the end."""
        self.done, self.work = self.done + 1, self.work + self._work[entry.name]
        fraction = self.work / self._total
        return Progress(self.done, len(self._work), entry.name, fraction, self.elapsed_s, self._left(self.work))

    def last(self) -> Progress:
        """Every tensor is merged."""
        left = self._left(self._total)
        return Progress(len(self._work), len(self._work), LAST_STEP, 1.0, self.elapsed_s, left)

    def _left(self, work: float) -> float | None:
        if self.plan.cost is None:
            return None
        foretold = self.plan.cost.seconds
        trusted = TRUST * foretold
        pace = (self.elapsed_s + trusted) / (work + trusted)
        return pace * max(0.0, foretold - work)
