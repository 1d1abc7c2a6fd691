"""SFTM: superpose the singular features of all tasks.

    D_t = sum_k s_tk u_tk v_tk^T                      singular features of each task matrix
    D*  = sum_tk a_tk u_tk v_tk^T                     one unknown coefficient per feature
    W*  = W_0 + scaling * D*

The coefficients solve a linear system that asks D* to do, for every task, what D_t did on that task's own features: see
sftm_app.linalg.superposition. Both readings of that sentence (`readout`, `mapping`) were derived from the abstract of
Qiu, Wu, Yao, "Superpose Singular Features for Model Merging", arXiv 2502.10698.
"""

from __future__ import annotations

from dataclasses import dataclass

from sftm_app.linalg.low_rank import Change, LowRank
from sftm_app.linalg.preservation import errors_from, errors_on
from sftm_app.linalg.superposition import superpose, superposed_change
from sftm_app.linalg.system import superposed
from sftm_app.merging.methods.base import Layer, Merged, Method, Rank, weighted_average
from sftm_app.merging.params import choice, number, rank


@dataclass(frozen=True)
class SFTMParams:
    """Parameters of SFTM."""

    variant: str = choice(
        "readout",
        "Variant",
        "readout keeps each feature's gain exactly; mapping keeps each feature's whole output as well as least squares "
        "can.",
        choices=("readout", "mapping"),
    )
    rank: Rank = rank(
        "Rank",
        "Singular features kept per task and layer: full, a count (32), a share of the full rank (25%), or as many as "
        "hold a share of the change (90% energy).",
    )
    scaling: float = number(
        1.0,
        "Scaling",
        "How strongly the superposed change is added. 1 asks for exactly what each task had.",
        minimum=0.0,
        maximum=2.0,
    )


def merge_matrix(layer: Layer, params: SFTMParams) -> Merged:
    """Superpose the task matrices of one layer.

    The figures hold, per task, the rank used and the readout and mapping error of what is added to the base (so after
    scaling, weights and truncation) on all of the task's own features; the same errors of the plain average for
    comparison; and how the system was solved. Where only the features kept were computed, `errors_on` says so: the
    others count as lost then (see linalg.preservation), and the average is that of the features kept.
    """
    found = layer.features(params.rank)
    factors = [item.factors.cut(params.rank) for item in found]
    solved = superpose(factors, variant=params.variant, weights=layer.weights)
    delta = superposed_change(factors, solved)
    total = sum(layer.weights) + layer.idle_weight
    if all(item.factors.rank == cut.rank for item, cut in zip(found, factors, strict=True)):
        gains = [f.S * weight for f, weight in zip(factors, layer.weights, strict=True)]
        lost = [item.lost for item in found]
        kept = errors_from(solved.merged, params.scaling, lambda: delta, factors, lost)
        average = errors_from(solved.plain, 1 / total, lambda: superposed(factors, gains), factors, lost)
        delta = _scaled(delta, params.scaling)
    else:
        whole = [item.factors for item in found]
        delta = _scaled(delta, params.scaling)
        kept = errors_on(delta, whole)
        average = errors_on(weighted_average(layer.changes, layer.weights, layer.idle_weight), whole)
    figures = {
        "ranks": [item.rank for item in factors],
        "factorised_by": [item.how for item in factors],
        "errors_on": "features kept" if any(item.lost for item in found) else "all features",
        "readout_errors": kept.readout,
        "mapping_errors": kept.mapping,
        "average_readout_errors": average.readout,
        "average_mapping_errors": average.mapping,
        "solver": solved.solver,
        "n_features": solved.n_features,
        "residual": solved.residual,
        "condition": solved.condition,
        "iterations": solved.iterations,
        "n_dropped": solved.n_dropped,
        "conflicts": [[conflict.first, conflict.second, conflict.cosine] for conflict in solved.conflicts],
    }
    return Merged(delta, figures)


def _scaled(change: Change, factor: float) -> Change:
    """factor * change; a matrix is scaled in place."""
    return change * factor if isinstance(change, LowRank) else change.mul_(factor)


METHOD = Method(
    name="sftm",
    title="SFTM",
    summary="Superposes all tasks' singular features so that each keeps its effect. No scaling has to be searched.",
    reference="Qiu, Wu, Yao, Superpose Singular Features for Model Merging, arXiv 2502.10698",
    params=SFTMParams,
    merge_matrix=merge_matrix,
    matrix_rule="superpose",
    rules={"embedding": "sum", "bias": "sum", "norm": "average"},
    scaling=lambda params: params.scaling,
)
