"""The Markdown tables of bench.peers, from the runs that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TSVM, TIES, TA, FLOOR = "tsvm", "ties", "mergekit-ta", "floor"
FULL, LOW, OURS_TA, OURS_TIES = "full", "low", "ours-ta", "ours-ties"
DEFAULT, OURS_TSVM, OURS_ISO = "default", "ours-tsvm", "ours-iso-c"
AGAIN, AGAIN_WEIGHTS, AGAIN_LOW = "again", "again-weights", "again-low"
TITLES = {
    FLOOR: "reading all inputs, writing the output, nothing else",
    TA: "mergekit, task arithmetic",
    OURS_TA: "**task arithmetic**",
    TIES: "mergekit, TIES",
    OURS_TIES: "**TIES**",
    TSVM: "FusionBench, TSV-M",
    OURS_TSVM: "**TSV-M**",
    OURS_ISO: "**Iso-C**",
    DEFAULT: "**SFTM, its defaults**",
    FULL: "**SFTM readout, full rank**",
    AGAIN: "**the same again, scaling 0.5**",
    AGAIN_WEIGHTS: "**the same again, one task at weight 0.5**",
    AGAIN_LOW: "**the same again, rank 1/T**",
    LOW: "**SFTM readout, rank 1/T**",
}


@dataclass(frozen=True)
class Run:
    """One process: `job` is a key of TITLES. Of ours only: residual, the worst over the layers, and what the report
    says the merge took and was predicted to take."""

    job: str
    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    residual: float | None = None
    took_seconds: float | None = None
    predicted_seconds: float | None = None
    took_bytes: int | None = None
    predicted_bytes: int | None = None


@dataclass(frozen=True)
class Goal:
    """A goal: the ratio of the medians of `figure` of two jobs is at most `most`."""

    says: str
    job: str
    of: str
    most: float
    figure: str = "seconds"


MEMORY = "peak_bytes"
GOALS = (
    Goal("SFTM, its defaults: at most 1.35 of its readout's time", DEFAULT, FULL, 1.35),
    Goal("TSV-M: at most 0.6 of FusionBench's time", OURS_TSVM, TSVM, 0.6),
    Goal("SFTM, full rank: at most half of TSV-M's time", FULL, TSVM, 0.5),
    Goal("SFTM, full rank: faster than mergekit's TIES", FULL, TIES, 1.0),
    Goal("SFTM, rank 1/T: at most a tenth of TSV-M's time", LOW, TSVM, 0.1),
    Goal("SFTM, rank 1/T: at most twice mergekit's task arithmetic", LOW, TA, 2.0),
    Goal("task arithmetic: at most 0.7 of mergekit's time", OURS_TA, TA, 0.7),
    Goal("full rank again, other scaling: at most 3 times reading and writing", AGAIN, FLOOR, 3.0),
    Goal("full rank again, other weights: at most 3 times reading and writing", AGAIN_WEIGHTS, FLOOR, 3.0),
    Goal("full rank again, lower rank: at most 3 times reading and writing", AGAIN_LOW, FLOOR, 3.0),
    *(
        Goal(f"memory of {title}: at most 0.15 of TSV-M's", job, TSVM, 0.15, MEMORY)
        for job, title in ((FULL, "SFTM, full rank"), (LOW, "SFTM, rank 1/T"), (OURS_TA, "task arithmetic"))
    ),
)
RESIDUAL = 1e-5


def work_table(runs: Sequence[Run], missing: Mapping[str, str], off: Mapping[str, Sequence[float]]) -> str:
    """A row per job: median, least and most seconds, ratios to the peers, memory, residual, and how far D* is off.

    Args:
        runs: what was measured.
        missing: job -> why it could not run.
        off: job -> relative differences from float64, one per compared layer.
    """
    lines = [
        "| work | time: median (least to most) | of TSV-M | of TIES | of mergekit's task arithmetic | processor time "
        "| peak memory | of TSV-M | worst residual | off float64: median, worst |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for job, title in TITLES.items():
        mine = _of(runs, job)
        if not mine:
            why = missing.get(job) or ("failed; see its log" if any(run.job == job for run in runs) else "")
            lines += [f"| {title} | {why} | | | | | | | | |"] if why else []
            continue
        seconds = [run.seconds for run in mine]
        ratios = " | ".join(ratio(runs, job, peer) for peer in (TSVM, TIES, TA))
        residuals = [run.residual for run in mine if run.residual is not None]
        apart = sorted(off.get(job, ()))
        lines.append(
            f"| {title} | {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}) | {ratios} "
            f"| {_median(runs, job, 'cpu_seconds'):.0f} s | {_median(runs, job, MEMORY) / 1e6:.0f} MB "
            f"| {ratio(runs, job, TSVM, MEMORY)} | {f'{max(residuals):.1e}' if residuals else ''} "
            f"| {f'{statistics.median(apart):.0e}, {apart[-1]:.0e}' if apart else ''} |"
        )
    return "\n".join(lines)


def goal_table(runs: Sequence[Run]) -> str:
    """A row per goal whose jobs were run, and whether it is reached.

    The ratio of processor times stands next to it: other work on the machine changes that less.
    """
    lines = ["| goal | measured | by processor time | reached |", "|---|---:|---:|---|"]
    for goal in GOALS:
        if _of(runs, goal.job) and _of(runs, goal.of):
            found = _median(runs, goal.job, goal.figure) / _median(runs, goal.of, goal.figure)
            busy = ratio(runs, goal.job, goal.of, "cpu_seconds") if goal.figure == "seconds" else ""
            lines.append(f"| {goal.says} | {found:.2f} | {busy} | {_reached(found <= goal.most)} |")
    residuals = [run.residual for run in _of(runs, FULL) if run.residual is not None]
    if residuals:
        worst, says = max(residuals), f"SFTM, full rank: residual at most {RESIDUAL:.0e} on every layer"
        lines.append(f"| {says} | {worst:.1e} | | {_reached(worst <= RESIDUAL)} |")
    return "\n".join(lines)


def predicted_table(runs: Sequence[Run]) -> str:
    """A row per merge of ours: the medians of what it took and of what the plan predicted."""
    lines = [
        "| merge | took | predicted | of what it took | took | predicted | of what it took |",
        f"|---|{'---:|' * 6}",
    ]
    for job, title in TITLES.items():
        mine = [run for run in _of(runs, job) if run.predicted_seconds is not None]
        if not mine:
            continue
        cells = [title]
        for took, predicted, unit, words in (
            ("took_seconds", "predicted_seconds", 1.0, "{:.1f} s"),
            ("took_bytes", "predicted_bytes", 1e6, "{:.0f} MB"),
        ):
            both = [_median(mine, job, figure) for figure in (took, predicted)]
            cells += [words.format(value / unit) for value in both] + [f"{both[1] / both[0]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(yes: bool) -> str:
    return "yes" if yes else "**no**"


def ratio(runs: Sequence[Run], job: str, peer: str, figure: str = "seconds") -> str:
    """The ratio of two medians of a figure as a cell; empty if the peer was not run."""
    return f"{_median(runs, job, figure) / _median(runs, peer, figure):.2f}" if _of(runs, peer) else ""


def _of(runs: Sequence[Run], job: str) -> list[Run]:
    return [run for run in runs if run.job == job and run.code == 0]


def _median(runs: Sequence[Run], job: str, figure: str) -> float:
    return statistics.median(float(getattr(run, figure)) for run in _of(runs, job))
