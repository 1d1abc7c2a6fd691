"""Task arithmetic: add up the task vectors, scaled.

    W* = W_0 + scaling * sum_t w_t D_t

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.linalg.low_rank import weighted_sum
from sftm_app.methods.base import Layer, Merged, Method
from sftm_app.methods.params import number


@dataclass(frozen=True)
class TaskArithmeticParams:
    """Parameters of task arithmetic."""

    scaling: float = number(
        0.3,
        "Scaling",
        "How strongly the summed changes are added. The best value depends on the tasks; 0.3 is the usual start.",
        minimum=0.0,
        maximum=2.0,
    )


def merge_matrix(layer: Layer, params: TaskArithmeticParams) -> Merged:
    """The scaled sum of the task matrices."""
    return Merged(weighted_sum(layer.changes, [params.scaling * weight for weight in layer.weights]))


METHOD = Method(
    name="task_arithmetic",
    title="Task arithmetic",
    summary="The sum of all changes times one scaling, which has to be found by trying.",
    reference="Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089",
    params=TaskArithmeticParams,
    merge_matrix=merge_matrix,
    matrix_rule="sum",
    rules={"embedding": "sum", "bias": "sum", "norm": "sum"},
    scaling=lambda params: params.scaling,
)
