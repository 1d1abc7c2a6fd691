"""Plain averaging of the checkpoints.

    W* = W_0 + sum_t w_t D_t / sum_t w_t

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482. With equal weights: the mean of the fine-tuned weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta
from sftm_app.methods.base import AVERAGED, Combination, Layer, Method, weighted_average
from sftm_app.methods.params import NoParams


def merge(layer: Layer, params: NoParams) -> Delta:
    """Average the task matrices with the tasks' weights."""
    return weighted_average(layer)


def predict(factors: Sequence[Factors], weights: Sequence[float], idle_weight: float, params: NoParams) -> Combination:
    """Name the average as a combination of all features."""
    total = sum(map(abs, weights)) + idle_weight
    return Combination(1.0, tuple(weights), tuple(f.rank for f in factors), share=1.0 / total)


METHOD = Method(
    name="average",
    title="Plain average",
    summary="The mean of the fine-tuned weights. Safe, and usually far below the individual models.",
    reference="Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482",
    params=NoParams,
    merge=merge,
    elementwise=True,
    roles=AVERAGED,
    predict=predict,
    weights_are_shares=True,
)
