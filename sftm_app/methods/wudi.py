"""WUDI in closed form: the change that interferes least with every task's inputs. And SWUDI, which filters it.

    minimise over D   sum_t || (D - D_t) D_t^T ||^2 / ||D_t||^2          D* = B G^+            see `linalg.interference`

WUDI    Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
        Vectors", ICML 2025, arXiv 2503.08099
SWUDI   Wei et al., "Closed-Form Spectral Regularization for Multi-Task Model Merging", 2026, arXiv 2606.07289:
        D* = B Q diag(phi / lambda) Q^T,   phi_i = 1 - exp(-time lambda_i / lambda_1) for the leading i, otherwise 0

The paper of WUDI takes some hundred steps of Adam from the sum of the task matrices, as FusionBench does, and stops
before the minimum. Here is the minimum itself, the one of least norm, without directions of the inputs in which all
tasks together are weaker than `cutoff` times the strongest: eigenvectors of G with lambda_i <= cutoff^2 lambda_1. The
whole minimum follows the rounding of the stored weights there, and can end below the base.

SWUDI's paper shows that stopping early filters weak eigenvectors, and filters them openly: gradient flow from zero for
some time gives phi above. Its text beyond the abstract was not available when this was written, so the defaults of
`time` and `rank` are ours, as is that of `cutoff`.

Tensors that are not linear maps are averaged, as in the papers. A task with weight w asks for w D_t. Adapters that
leave a layer as it is have no inputs to protect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sftm_app.linalg.core_space import core_bytes, core_operations, core_size, core_space
from sftm_app.linalg.factors import n_leading
from sftm_app.linalg.interference import (
    interference_bytes,
    interference_operations,
    normal_equation,
    solve_filtered,
)
from sftm_app.linalg.low_rank import Delta
from sftm_app.methods.base import AVERAGED, Layer, LayerSize, Method, Rank
from sftm_app.methods.params import CommonParams, number, rank


def _scaling() -> Any:
    return number(1.0, "Scaling", "How strongly the result is added. 1 is the paper's value.", minimum=0.0, maximum=2.0)


@dataclass(frozen=True)
class WUDIParams(CommonParams):
    """Parameters of WUDI."""

    cutoff: float = number(
        0.03,
        "Cut-off",
        "Directions of the inputs in which all tasks together are weaker than this share of the strongest are left "
        "out. At 0 the result follows rounding noise.",
        minimum=0.0,
        maximum=0.3,
        step=0.01,
    )
    scaling: float = _scaling()


@dataclass(frozen=True)
class SWUDIParams(CommonParams):
    """Parameters of SWUDI."""

    time: float = number(
        30.0,
        "Time",
        "How long the descent towards WUDI's minimum would run. When it is short, less is written on directions of the "
        "inputs that all tasks use little.",
        minimum=1.0,
        maximum=1000.0,
        step=0.5,
    )
    rank: Rank = rank(
        "Rank",
        "How many directions of the inputs are kept at most, those that the tasks use most first: all (full), a count "
        "(32), a share (25%), or as many as hold a share of the energy (99% energy).",
    )
    scaling: float = _scaling()


def merge_wudi(layer: Layer, params: WUDIParams) -> Delta:
    """Minimise the interference. One task, or copies of it, come out as it is, but for what the cut-off leaves out."""

    def phi(shares: Tensor, n: int) -> Tensor:
        return (shares > params.cutoff**2).to(shares)

    return _merge(layer, params.scaling, phi)


def merge_swudi(layer: Layer, params: SWUDIParams) -> Delta:
    """Minimise the interference, and filter directions that the tasks use little."""

    def phi(shares: Tensor, n: int) -> Tensor:
        n_kept = n_leading(params.rank, shares.sqrt(), n, n)
        kept = torch.arange(len(shares), device=shares.device) < n_kept
        return -torch.expm1(-params.time * shares) * kept

    return _merge(layer, params.scaling, phi)


def _merge(layer: Layer, scaling: float, phi: Callable[[Tensor, int], Tensor]) -> Delta:
    """phi: (eigenvalues as shares of the largest, number of inputs) -> how much of each eigenvector is kept."""
    space = core_space(layer.task_matrices)
    equation = normal_equation(space.cores if space else layer.task_matrices, layer.weights)
    n = space.shape[1] if space else equation.B.shape[1]
    delta = solve_filtered(equation, lambda shares: phi(shares, n)).mul_(scaling)
    return space.expand(delta) if space else delta


def workspace(size: LayerSize, params: Any) -> int:
    """Bytes: one task matrix, the normal equation and its solution."""
    core = core_size(size)
    return core.tensor_bytes + core.stored_bytes + interference_bytes(core.m, core.n) + core_bytes(size)


def operations(size: LayerSize, params: Any) -> float:
    """Operations of forming and solving the normal equation."""
    core = core_size(size)
    return interference_operations(core.m, core.n, len(core.features)) + core_operations(size)


METHODS = (
    Method(
        name="wudi",
        title="WUDI",
        summary="The change that disturbs every task least on the inputs it uses, judged from the weights alone, in "
        "closed form. For a few tasks that were tuned fully.",
        reference="Cheng et al., Whoever Started the Interference Should End It, ICML 2025, arXiv 2503.08099",
        params=WUDIParams,
        merge=merge_wudi,
        elementwise=False,
        roles=AVERAGED,
        workspace=workspace,
        operations=operations,
        stays_low_rank=True,
    ),
    Method(
        name="swudi",
        title="SWUDI",
        summary="WUDI without the directions that tasks use too little to be told from noise. For many tasks, where "
        "WUDI itself overshoots.",
        reference="Wei et al., Closed-Form Spectral Regularization for Multi-Task Model Merging, arXiv 2606.07289",
        params=SWUDIParams,
        merge=merge_swudi,
        elementwise=False,
        roles=AVERAGED,
        workspace=workspace,
        operations=operations,
        stays_low_rank=True,
    ),
)
