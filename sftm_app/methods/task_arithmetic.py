"""Task arithmetic: the scaled sum of the task vectors.

    W* = W_0 + scaling * sum_t w_t D_t

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, weighted_sum
from sftm_app.methods.base import Combination, Layer, Method
from sftm_app.methods.params import CommonParams, number


@dataclass(frozen=True)
class TaskArithmeticParams(CommonParams):
    """Parameters of task arithmetic."""

    scaling: float = number(
        0.3,
        "Scaling",
        "How strongly the sum of the task vectors is added. The best value depends on the tasks; try 0.3 first.",
        minimum=0.0,
        maximum=2.0,
    )


def merge(layer: Layer, params: TaskArithmeticParams) -> Delta:
    """Add up the task matrices, scaled."""
    return weighted_sum(layer.task_matrices, [params.scaling * weight for weight in layer.weights])


def predict(
    factors: Sequence[Factors], weights: Sequence[float], idle_weight: float, params: TaskArithmeticParams
) -> Combination:
    """Name the sum as a combination of all features."""
    return Combination(params.scaling, tuple(weights), tuple(f.rank for f in factors))


METHOD = Method(
    name="task_arithmetic",
    title="Task arithmetic",
    summary="The sum of all task vectors times one scaling. Find the scaling by trying.",
    reference="Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089",
    params=TaskArithmeticParams,
    merge=merge,
    elementwise=True,
    roles={"embedding": "sum", "bias": "sum", "norm": "sum"},
    predict=predict,
)
