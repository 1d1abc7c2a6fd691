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

from sftm_app.linalg.subspace import mapping_error, readout_error
from sftm_app.linalg.superposition import superpose, superposed_change
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
    comparison; and how the system was solved.
    """
    whole = [layer.factorise(task) for task in range(len(layer.changes))]
    factors = [item.cut(params.rank) for item in whole]
    solved = superpose(factors, variant=params.variant, weights=layer.weights)
    delta = superposed_change(factors, solved) * params.scaling
    average = weighted_average(layer.changes, layer.weights, layer.idle_weight)
    figures = {
        "ranks": [item.rank for item in factors],
        "factorised_by": [item.how for item in factors],
        "readout_errors": [readout_error(delta, item) for item in whole],
        "mapping_errors": [mapping_error(delta, item) for item in whole],
        "average_readout_errors": [readout_error(average, item) for item in whole],
        "average_mapping_errors": [mapping_error(average, item) for item in whole],
        "solver": solved.solver,
        "n_features": solved.n_features,
        "residual": solved.residual,
        "condition": solved.condition,
        "iterations": solved.iterations,
        "n_dropped": solved.n_dropped,
        "conflicts": [[conflict.first, conflict.second, conflict.cosine] for conflict in solved.conflicts],
    }
    return Merged(delta, figures)


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
