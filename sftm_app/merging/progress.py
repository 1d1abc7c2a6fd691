"""How far a merge is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sftm_app.merging.plan import Plan, PlanEntry

LAST_STEP = "Writing the report"


@dataclass(frozen=True)
class Progress:
    """After `done` of `total` tensors, the last of which was `name`. `fraction` counts work, not tensors.

    The last one has the name LAST_STEP: every tensor is merged, the files are still to be completed.
    """

    done: int
    total: int
    name: str
    fraction: float
    elapsed_s: float
    remaining_s: float


@dataclass
class Clock:
    """Counts the entries of a plan that are done and what they cost, from the moment it is made."""

    plan: Plan
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    cost: float = 0.0

    def __post_init__(self) -> None:
        self._total = sum(each.cost for each in self.plan.entries)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def after(self, entry: PlanEntry) -> Progress:
        """Count one entry more. Entries that are copied and not counted are taken as done at the end."""
        self.done, self.cost = self.done + 1, self.cost + entry.cost
        left = self.elapsed_s * (self._total - self.cost) / self.cost
        fraction = self.cost / self._total
        return Progress(self.done, len(self.plan.entries), entry.name, fraction, self.elapsed_s, left)

    def last(self) -> Progress:
        """Every tensor is merged."""
        return Progress(len(self.plan.entries), len(self.plan.entries), LAST_STEP, 1.0, self.elapsed_s, 0.0)
