"""SFTM: superpose the singular features of all tasks.

    D_t = sum_k s_tk u_tk v_tk^T                      singular features of each task matrix
    D*  = sum_tk a_tk u_tk v_tk^T                     one unknown coefficient per feature
    W*  = W_0 + scaling * D*

The coefficients solve a linear system that asks D* to do, for every task, what D_t did on that task's own features: see
sftm_app.linalg.superposition. Both readings of that sentence (`readout`, `mapping`) were derived from the abstract of
Qiu, Wu, Yao, "Superpose Singular Features for Model Merging", arXiv 2502.10698.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import partial
from typing import Any

import torch

from sftm_app.linalg.low_rank import LowRank
from sftm_app.linalg.preservation import Formable, Preservation, errors, preserved, preserved_by
from sftm_app.linalg.superposition import SystemSolution, superpose, superposed_delta
from sftm_app.linalg.system import superposed
from sftm_app.methods.base import CachedLayer, Layer, Merged, Method, Rank, weighted_average
from sftm_app.methods.params import choice, number, rank


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
    others count as lost then (see linalg.preservation), and the average is that of the features kept. `kept` says that
    an earlier merge had found all but the scaling.
    """
    kept = layer.keep(partial(_superpose, layer, params))
    found = errors((Preservation(*numbers) for numbers in kept.values["kept"]), params.scaling)
    figures = kept.values["figures"] | {"readout_errors": found.readout, "mapping_errors": found.mapping}
    if kept.found:
        figures["kept"] = True
    if "delta" in kept.tensors:
        return Merged(kept.tensors["delta"].mul_(params.scaling), figures)
    return Merged(LowRank(kept.tensors["left"], kept.tensors["right"]) * params.scaling, figures)


def _superpose(layer: Layer, params: SFTMParams) -> CachedLayer:
    """D* and everything of the figures that scaling leaves as it is."""
    found = layer.features(params.rank)
    factors = [item.factors.cut(params.rank) for item in found]

    def keep(make: Callable[[], SystemSolution]) -> SystemSolution:
        return _solved(layer.keep(lambda: _kept(make()), factors), factors[0].U.device)

    solved = superpose(factors, variant=params.variant, weights=layer.weights, keep=keep)
    delta = superposed_delta(factors, solved)
    total = sum(layer.weights) + layer.idle_weight
    if all(item.factors.rank == cut.rank for item, cut in zip(found, factors, strict=True)):
        gains = [f.S * weight for f, weight in zip(factors, layer.weights, strict=True)]
        lost = [item.lost for item in found]
        matrices = [
            Formable(solved.merged, lambda: delta),
            Formable(solved.plain, lambda: superposed(factors, gains, like=delta)),
        ]
        kept, plain = preserved(matrices, factors, lost)
        average = errors(plain, 1 / total)
    else:
        whole = [item.factors for item in found]
        kept = preserved_by(delta, whole)
        average = errors(preserved_by(weighted_average(layer.changes, layer.weights, layer.idle_weight), whole))
    figures = {
        "ranks": [item.rank for item in factors],
        "factorised_by": [item.how for item in factors],
        "errors_on": "features kept" if any(item.lost for item in found) else "all features",
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
    tensors = {"left": delta.left, "right": delta.right} if isinstance(delta, LowRank) else {"delta": delta}
    return CachedLayer(tensors, {"figures": figures, "kept": [astuple(one) for one in kept]})


def _kept(solved: SystemSolution) -> CachedLayer:
    tensors = solved.tensors()
    figures = {item.name: getattr(solved, item.name) for item in fields(solved) if item.name not in tensors}
    return CachedLayer(tensors, figures)


def _solved(kept: CachedLayer, device: torch.device) -> SystemSolution:
    given: dict[str, Any] = {name: tensor.to(device) for name, tensor in kept.tensors.items()}
    return SystemSolution(**given, **kept.values)


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
