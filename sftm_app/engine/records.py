"""What the engine records about each tensor it merges, for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        average_readout_errors, average_mapping_errors: the same of the plain average.
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
    cached: bool = False
    device: str | None = None
    tasks: tuple[str, ...] | None = None
    adapter_rank: int | None = None
    energy_kept: float | None = None
    left_out: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The figures that apply, as JSON values. A conflict is [first, second, cosine]."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found["conflicts"] = [list(dataclasses.astuple(conflict)) for conflict in self.conflicts]
        if self.solver is None:
            del found["n_dropped"], found["conflicts"]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if value is not None and value is not False and value != ()
        }


def read_figures(values: Mapping[str, Any]) -> Figures:
    """Figures from the JSON values of `Figures.to_dict`, also as the version before wrote them.

    Raises:
        TypeError: a figure is not known.
    """
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "kept" in given:  # its name before
        given["cached"] = given.pop("kept")
    if "conflicts" in given:
        given["conflicts"] = tuple(Conflict(*conflict) for conflict in given["conflicts"])
    return Figures(**given)


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
    figures: Figures = NO_FIGURES

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(dataclasses.replace(self, figures=Figures())) | {"figures": self.figures.to_dict()}


def read_record(values: Mapping[str, Any]) -> TensorRecord:
    """A record from the JSON values of `TensorRecord.to_dict`.

    Raises:
        KeyError, TypeError: a field is missing or not known.
    """
    figures = read_figures(values["figures"])
    return TensorRecord(**{**values, "shape": tuple(values["shape"]), "figures": figures})
