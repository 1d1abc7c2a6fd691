"""What the engine records about each tensor it merges, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AliasChoices, Field

from sftm_app.linalg.conflicts import Conflict


@dataclass(frozen=True)
class Figures:
    """Figures of one merged linear map. None, or empty, where a figure does not apply.

    Figures with one number per task belong to `tasks` where only some tasks hold the tensor, otherwise to all tasks.

    Attributes:
        ranks: features used, per task.
        factorised_by: how each task matrix was factorised, per task.
        readout_errors, mapping_errors: what the delta keeps of each task, after scaling and weights; see
            `linalg.preservation`.
        average_readout_errors, average_mapping_errors: the same for the plain average.
        errors_on: "all features", or "features kept" where the others were not computed and count as lost.
        solver, n_features, residual, condition, iterations, n_dropped, conflicts: see `methods.base.SolveFigures`.
        cached: whether an earlier merge had computed all but the scaling.
        device: where it was computed, if not on the plan's device.
        tasks: the names of the tasks that hold the tensor, if not all do.
        adapter_rank, energy_kept: of a layer in an adapter.
        left_out: whether the adapter cannot carry the tensor's change.
    """

    ranks: tuple[int, ...] = ()
    factorised_by: tuple[str, ...] = ()
    readout_errors: tuple[float, ...] = ()
    mapping_errors: tuple[float, ...] = ()
    average_readout_errors: tuple[float, ...] = ()
    average_mapping_errors: tuple[float, ...] = ()
    errors_on: str | None = None
    solver: str | None = None
    n_features: int | None = None
    residual: float | None = None
    condition: float | None = None
    iterations: int | None = None
    n_dropped: int = 0
    conflicts: tuple[Conflict, ...] = ()
    # Version 0.1.0 wrote it as "kept".
    cached: Annotated[bool, Field(validation_alias=AliasChoices("cached", "kept"))] = False
    device: str | None = None
    tasks: tuple[str, ...] | None = None
    adapter_rank: int | None = None
    energy_kept: float | None = None
    left_out: bool = False


NO_FIGURES = Figures()


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the output: what was done to it, why, and how long it took.

    Attributes:
        name: the tensor's name, with the part in brackets where it holds several linear maps.
        role: see `architecture.roles.Role`.
        rule: "method", "sum", "average" or "copy".
        why: the reason for its role.
        shape: of the tensor, or of the part.
        seconds: the time it took.
        figures: see `Figures`.
    """

    name: str
    role: str
    rule: str
    why: str
    shape: tuple[int, ...]
    seconds: float
    figures: Figures
