"""Task arithmetic: the scaled sum of the task vectors.

    W* = W_0 + scaling * factor(kind of submodule) * sum_t w_t D_t

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089: one scaling for the whole model.

Dai et al., "Leveraging Submodule Linearity Enhances Task Arithmetic Performance in LLMs", ICLR 2025, arXiv 2504.10902,
scale attention and MLP on their own, because each of them is closer to linear than the whole model. The paper computes
a coefficient per task and submodule from samples; here there is one factor per kind, set by hand.
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
    attention: float = number(1.0, "Attention", "Multiplies the scaling in attention layers.", minimum=0.0, maximum=3.0)
    mlp: float = number(1.0, "MLP", "Multiplies the scaling in the MLPs of all blocks.", minimum=0.0, maximum=3.0)
    other: float = number(
        1.0,
        "Other",
        "Multiplies the scaling elsewhere: embeddings, norms, poolers, convolutions.",
        minimum=0.0,
        maximum=3.0,
    )


def merge(layer: Layer, params: TaskArithmeticParams) -> Delta:
    """Add up the task matrices, scaled."""
    return weighted_sum(layer.task_matrices, [params.scaling * weight for weight in layer.weights])


def kind_factor(params: TaskArithmeticParams, kind: str) -> float:
    """What the scaling is multiplied by in one kind of submodule."""
    return {"attention": params.attention, "mlp": params.mlp}.get(kind, params.other)


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
    kind_factor=kind_factor,
)
