"""What a person should know about the merged layers, in sentences with the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.engine.records import TensorRecord
from sftm_app.linalg.solvers import Outcome

# Relative. A finished solve is at 1e-5 or less, dropped directions cost 1e-3: beyond 1e-2 something was lost.
LARGE_RESIDUAL = 1e-2


def findings(tasks: Sequence[str], records: Sequence[TensorRecord]) -> tuple[str, ...]:
    """Conflicts, shared features, and systems that were not solved exactly.

    Args:
        tasks: the names of all tasks.
        records: of the merged tensors.
    """
    sentences = []
    conflicts: dict[tuple[str, str], list[float]] = {}
    for record in records:
        names = record.figures.tasks or tasks
        for conflict in record.figures.conflicts:
            conflicts.setdefault((names[conflict.first], names[conflict.second]), []).append(conflict.cosine)
    for (left, right), cosines in conflicts.items():
        sentences.append(
            f"Conflict: {left} and {right} oppose each other in {_count(len(cosines))} "
            f"(cosine down to {min(cosines):.2f}). The merged weight cannot do what both ask for."
        )
    dropped = [record.figures.n_dropped for record in records if record.figures.n_dropped]
    if dropped:
        sentences.append(
            f"Tasks share features exactly in {_count(len(dropped))} ({sum(dropped)} directions dropped). The "
            "least-norm solution was taken."
        )
    return tuple(sentences + _inexact(records))


def _inexact(records: Sequence[TensorRecord]) -> list[str]:
    """A sentence for systems stopped early, and one for systems that are off although no tasks oppose."""
    outcomes = {outcome.value: outcome for outcome in Outcome}
    solved = [(record, outcomes.get(record.figures.solver)) for record in records if record.figures.solver]
    early = [record for record, outcome in solved if outcome is Outcome.STOPPED_EARLY]
    off = [
        record
        for record, outcome in solved
        if outcome is not Outcome.STOPPED_EARLY
        and not record.figures.conflicts
        and (record.figures.residual or 0.0) > LARGE_RESIDUAL
    ]
    sentences = []
    if early:
        sentences.append(
            f"The solver was stopped early in {_worst(early)}: an exact solution would harm the model. "
            "Choose a lower rank to solve these layers exactly."
        )
    if off:
        sentences.append(
            f"The solution is inexact in {_worst(off)}, although no tasks oppose each other there. Compare the readout "
            "errors, and choose a lower rank if they matter."
        )
    return sentences


def _worst(records: Sequence[TensorRecord]) -> str:
    worst = max(records, key=lambda record: record.figures.residual or 0.0)
    return f"{_count(len(records))} (largest residual {worst.figures.residual or 0.0:.2g}, in {worst.name})"


def _count(n: int) -> str:
    return f"{n} layers" if n != 1 else "1 layer"
