"""KnOTS: write all tasks in one basis of outputs, and merge them there by TIES.

    [D_1 .. D_T] = U diag(s) [V_1 .. V_T]^T (m, T n),   C_t = diag(s) V_t^T = U^T D_t (r, n)
    D* = U TIES(C_1 .. C_T)                               each C_t trimmed to its largest `density`
    W* = W_0 + scaling * D*

Stoica et al., "Model merging with SVD to tie the Knots", ICLR 2025, arXiv 2410.19735. It was made for adapters, whose
changes share few directions as they are. (The paper's task arithmetic on the C_t is left out: in any basis it gives
what task arithmetic gives.) U does not depend on the tasks' weights, which count as in TIES.

The authors' code trims the coordinates of the whole model together; here each matrix is trimmed by itself. It drops
singular values below 1e-5, and here those that are rounding next to the largest are dropped. Its scaling is searched on
validation data: 0.6 and 0.5 for CLIP ViT-B and L, where the density is 0.2; for Llama-3 8B 0.5 and a density of 1.
FusionBench 0.2.33 has the basis without a method that uses it. Tensors that are not linear maps are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.linalg.consensus import elect
from sftm_app.linalg.core_space import core_bytes, core_operations, core_size, core_space
from sftm_app.linalg.gram_svd import ROWS, gram
from sftm_app.linalg.low_rank import Delta, LowRank, dense
from sftm_app.linalg.polar import EIGEN_OPERATIONS, EIGEN_SQUARES
from sftm_app.linalg.sparsity import keep_largest
from sftm_app.linalg.tolerance import rcond
from sftm_app.methods.base import AVERAGED, Layer, LayerSize, Method
from sftm_app.methods.params import CommonParams, number

# Matrices of the coordinates' size that TIES holds at most: one task's, its sparse copy, and five sums.
TIES_MATRICES = 7
# What TIES costs for an entry, in floating-point operations that take as long: it runs at the speed of memory.
TIES_OPERATIONS = 1500.0


@dataclass(frozen=True)
class KnotsParams(CommonParams):
    """Parameters of KnOTS."""

    density: float = number(
        0.2,
        "Density",
        "The share of each task's aligned changes that TIES keeps: its largest entries. The authors' code takes 0.2 "
        "for vision models.",
        minimum=0.01,
        maximum=1.0,
    )
    scaling: float = number(
        0.6,
        "Scaling",
        "How strongly the result is added. The paper searches it on validation data: 0.6 for its CLIP ViT-B models.",
        minimum=0.0,
        maximum=2.0,
    )


def merge(layer: Layer, params: KnotsParams) -> Delta:
    """Align the task matrices and merge them. Each is read twice, so that one is held at a time."""
    space = core_space(layer.task_matrices)
    matrices: Sequence[Delta] = space.cores if space else layer.task_matrices
    U = output_basis(matrices)

    def aligned(task: int) -> Tensor:
        C = U.T @ dense(matrices[task])
        C = C @ space.right if space else C
        return keep_largest(C, params.density) if C.numel() else C

    merged = elect(layer.weights, aligned).mul_(params.scaling)
    return LowRank(space.left @ U, merged) if space else U @ merged


def output_basis(matrices: Sequence[Delta]) -> Tensor:
    """The write directions of all matrices side by side, from the eigenvectors of sum_t D_t D_t^T in float64.

    Args:
        matrices: (m, n) each, of one dtype, at least one.

    Returns:
        U, (m, r), orthonormal columns in the matrices' dtype, strongest first; r is their joint rank.
    """
    total: Tensor | None = None
    dtype, n = torch.float32, 0
    for index in range(len(matrices)):
        D = dense(matrices[index])
        dtype, n = D.dtype, D.shape[1]
        outputs = gram(D.T, torch.float64)
        del D  # before the next one is read
        total = outputs if total is None else total.add_(outputs)
        del outputs
    assert total is not None, "a layer has at least one task"
    m = len(total)
    values, vectors = torch.linalg.eigh(total)
    del total
    n_kept = int((values > max(0.0, float(values[-1])) * rcond(dtype, m, n) ** 2).sum()) if m else 0
    return vectors[:, m - n_kept :].flip(1).to(dtype)


def workspace(size: LayerSize, params: KnotsParams) -> int:
    """Bytes: the eigenvectors of the outputs; then the basis, one task matrix, and what TIES takes."""
    core = core_size(size)
    basis = EIGEN_SQUARES * 8 * core.m**2
    reading = core.tensor_bytes + core.stored_bytes + 2 * 8 * core.m**2 + 8 * ROWS * core.m
    coordinates = 4 * core.m * size.n  # of adapters too, all inputs
    merging = 4 * core.m**2 + core.tensor_bytes + core.stored_bytes + TIES_MATRICES * coordinates
    return max(basis, reading, merging) + core_bytes(size)


def operations(size: LayerSize, params: KnotsParams) -> float:
    """Operations of the basis, of aligning every task, and of TIES."""
    core, n_tasks = core_size(size), len(size.features)
    basis = EIGEN_OPERATIONS * core.m**3 + 2.0 * core.n * core.m**2 * n_tasks
    aligning = 2.0 * core.m**2 * size.n * (n_tasks + 1)
    return basis + aligning + TIES_OPERATIONS * core.m * size.n * n_tasks + core_operations(size)


METHOD = Method(
    name="knots",
    title="KnOTS",
    summary="Rewrites all tasks in shared directions before TIES trims and averages them. For LoRA adapters, whose "
    "changes hardly agree entry by entry.",
    reference="Stoica et al., Model merging with SVD to tie the Knots, ICLR 2025, arXiv 2410.19735",
    params=KnotsParams,
    merge=merge,
    elementwise=False,
    roles=AVERAGED,
    workspace=workspace,
    operations=operations,
    weights_are_shares=True,
    stays_low_rank=True,
)
