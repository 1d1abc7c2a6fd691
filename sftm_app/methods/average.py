"""Plain averaging of the checkpoints.

    W* = W_0 + sum_t w_t D_t / sum_t w_t

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482. With equal weights: the mean of the fine-tuned weights.
"""

from __future__ import annotations

from sftm_app.methods.base import Layer, Merged, Method, weighted_average
from sftm_app.methods.params import NoParams


def merge_matrix(layer: Layer, params: NoParams) -> Merged:
    """The weighted average of the task matrices."""
    return Merged(weighted_average(layer.changes, layer.weights, layer.idle_weight))


METHOD = Method(
    name="average",
    title="Plain average",
    summary="The mean of the fine-tuned weights. Safe, and usually far below the individual models.",
    reference="Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482",
    params=NoParams,
    merge_matrix=merge_matrix,
    matrix_rule="average",
    rules={"embedding": "average", "bias": "average", "norm": "average"},
    scaling=lambda params: 1.0,
)
