"""SLERP: go from one checkpoint to the other along the arc between their weights.

    A = W_0 + D_1,  B = W_0 + D_2,  cos(omega) = <A, B> / (||A|| ||B||),  t = w_2 / (w_1 + w_2)
    W* = (sin((1 - t) omega) A + sin(t omega) B) / sin(omega)

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; tensor by tensor, as in mergekit. The tasks'
weights give t. Where the weights are nearly parallel, the arc is a straight line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sftm_app.linalg.low_rank import dense
from sftm_app.methods.base import Layer, LayerSize, Method
from sftm_app.methods.params import NoParams

# Below this sine of the angle, the arc and the line agree to the last digit of float32.
SMALL_SINE = 1e-6


def merge(layer: Layer, params: NoParams) -> Tensor:
    """Interpolate between two checkpoints. Where only one of them holds the tensor, that one is used."""
    matrices = [dense(D) for D in layer.task_matrices]
    weights = list(layer.weights)
    if layer.idle_weight:  # an adapter that leaves this layer as it is has the base's weight here
        matrices.append(torch.zeros_like(matrices[0]))
        weights.append(layer.idle_weight)
    if len(matrices) == 1:
        return matrices[0]
    first, second = matrices
    a, b = shares(layer.base() + first, layer.base() + second, weights[1] / (weights[0] + weights[1]))
    # a A + b B - W_0, without the cancellation of large weights.
    return (first * a).add_(second, alpha=b).add_(layer.base(), alpha=a + b - 1)


def shares(A: Tensor, B: Tensor, t: float) -> tuple[float, float]:
    """The factors of A and B on the arc between them.

    Args:
        A, B: tensors of one shape.
        t: the place on the arc, 0 at A and 1 at B.

    Returns:
        Two factors; 1 - t and t where the tensors are parallel, or one of them is zero.
    """
    A, B = A.flatten().double(), B.flatten().double()
    norms = float(A.norm() * B.norm())
    if norms == 0.0:
        return 1 - t, t
    omega = math.acos(min(1.0, max(-1.0, float(A @ B) / norms)))
    sine = math.sin(omega)
    if sine < SMALL_SINE:
        return 1 - t, t
    return math.sin((1 - t) * omega) / sine, math.sin(t * omega) / sine


def workspace(size: LayerSize, params: NoParams) -> int:
    """Bytes: two task matrices, both weights, and the same in float64."""
    return 2 * size.tensor_bytes + size.stored_bytes + 6 * size.matrix_bytes


METHOD = Method(
    name="slerp",
    title="SLERP",
    summary="The point between two checkpoints on the arc that joins their weights. For exactly two tasks.",
    reference="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
    params=NoParams,
    merge=merge,
    elementwise=False,
    roles={"embedding": "method", "bias": "method", "norm": "method"},
    workspace=workspace,
    n_tasks=2,
    weights_are_shares=True,
)
