"""SFTM: superpose the singular features of all tasks.

    D_t = sum_k s_tk u_tk v_tk^T                      singular features of each task matrix
    D*  = sum_tk a_tk u_tk v_tk^T                     one unknown coefficient per feature
    W*  = W_0 + scaling * D*

The coefficients solve a linear system that asks D* to do, for every task, what D_t did on that task's own features: see
`sftm_app.linalg.superposition`. Two variants (`readout`, `mapping`) were derived from the abstract of Qiu, Wu, Yao,
"Superpose Singular Features for Model Merging", arXiv 2502.10698. `minimum_variance` is ours: it keeps every gain as
`readout` does, and writes least on what the tasks read and write; see `sftm_app.linalg.metric`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftm_app.linalg.factors import AUTO, Factors, cut_all
from sftm_app.linalg.metric import Metric
from sftm_app.linalg.superposition import superpose, superpose_operations, superposed_delta
from sftm_app.linalg.workspace import factorise_bytes, superpose_bytes
from sftm_app.methods.base import AVERAGED, Combination, Layer, LayerSize, Merged, Method, Rank, SolveFigures
from sftm_app.methods.params import CommonParams, choice, number, rank


@dataclass(frozen=True, kw_only=True)
class SFTMParams(CommonParams):
    """Parameters of SFTM."""

    variant: str = choice(
        "minimum_variance",
        "Variant",
        "readout (the paper's) keeps the gain of every feature exactly. minimum_variance (ours) does so too before it "
        "is calibrated, and writes as little as possible on what the tasks read and write. mapping keeps the whole "
        "output of every feature as well as least squares can.",
        choices=("minimum_variance", "readout", "mapping"),
    )
    rank: Rank = rank(
        "Rank",
        "How many singular features to keep per task and layer: all (full), a count (32), a share of the full rank "
        "(25%), as many as hold a share of the energy (90% energy), or auto: 90% energy where the tasks have more "
        "features than the layer has dimensions, else all.",
        default=AUTO,
        auto=True,
    )
    scaling: float = number(
        1.0,
        "Scaling",
        "How strongly the superposition is added. 1 is meant; no other value has to be searched.",
        minimum=0.0,
        maximum=2.0,
    )
    loading: float = number(
        3.0,
        "Loading",
        "For minimum_variance: larger values trust less what the task matrices say of the inputs; very large ones give "
        "readout.",
        minimum=0.01,
        maximum=1000.0,
    )
    sides: str = choice(
        "both",
        "Sides",
        "For minimum_variance: avoid what the tasks read and write (both), or only what they read (inputs).",
        choices=("both", "inputs"),
    )
    calibration: float = number(
        1.0,
        "Calibration",
        "For minimum_variance: shrinks directions into which the merge adds up more than a task has there (SVC). 0 is "
        "off, 1 is the strength of the SVC paper, 0.5 is its square root.",
        minimum=0.0,
        maximum=1.0,
    )

    def unused(self) -> frozenset[str]:
        """The paper's variants have no metric, and are not calibrated."""
        return frozenset() if self.variant == "minimum_variance" else frozenset({"loading", "sides", "calibration"})


def equations(params: SFTMParams) -> tuple[str, Metric | None]:
    """The variant of `superpose`, and its metric."""
    if params.variant != "minimum_variance":
        return params.variant, None
    return "readout", Metric(params.loading, params.loading if params.sides == "both" else None)


def merge(layer: Layer, params: SFTMParams) -> Merged:
    """Superpose the task matrices of one layer."""
    factors = cut_all([item.factors for item in layer.features()], params.rank)
    variant, metric = equations(params)
    solved = superpose(factors, variant, weights=layer.weights, n_threads=layer.n_threads, metric=metric)
    delta = superposed_delta(factors, solved)
    figures = SolveFigures(
        solver=solved.outcome.value,
        n_features=solved.n_features,
        residual=solved.residual,
        condition=solved.condition,
        iterations=solved.iterations,
        n_dropped=solved.n_dropped,
        conflicts=solved.conflicts,
    )
    return Merged(delta if params.scaling == 1 else delta * params.scaling, figures)


def predict(
    factors: Sequence[Factors], weights: Sequence[float], idle_weight: float, params: SFTMParams
) -> Combination:
    """Name the superposition.

    Where every task reads all inputs, `mapping` is known to be the plain average: sum_t || D V_t - w_t U_t S_t ||^2 is
    then sum_t || D - w_t D_t ||^2.
    """
    counts = tuple(f.rank for f in cut_all(factors, params.rank))
    given = tuple(weights)
    n_square = counts.count(factors[0].shape[1])
    if params.variant == "mapping" and n_square and n_square + counts.count(0) == len(counts):
        return Combination(params.scaling, given, counts, share=1.0 / n_square, reports_conflicts=True)
    variant, metric = equations(params)
    return Combination(params.scaling, given, counts, variant, metric, reports_conflicts=True)


def asked_rank(params: SFTMParams) -> Rank:
    """The rank of the features that `merge` asks for."""
    return params.rank


def workspace(size: LayerSize, params: SFTMParams) -> int:
    """Bytes: factorising every task, then all features and the system."""
    computed = size.computed(params.rank)
    held = sum(map(size.thin_bytes, computed))
    solving = superpose_bytes(size, size.kept(params.rank), *equations(params))
    return max(factorise_bytes(size, computed), held + solving)


def operations(size: LayerSize, params: SFTMParams) -> float:
    """Operations of forming and solving the system and of forming D*."""
    return superpose_operations(size.m, size.n, size.likely(params.rank), *equations(params))


METHOD = Method(
    name="sftm",
    title="SFTM",
    summary="Superposes the singular features of all tasks so that each keeps its effect. Works without tuning the "
    "scaling.",
    reference="Qiu, Wu, Yao, Superpose Singular Features for Model Merging, arXiv 2502.10698; minimum_variance: ours, "
    "after Frost 1972 and Carlson 1988",
    params=SFTMParams,
    merge=merge,
    elementwise=False,
    roles=AVERAGED,
    workspace=workspace,
    operations=operations,
    features=asked_rank,
    predict=predict,
)
