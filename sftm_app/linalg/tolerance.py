"""Every threshold of the linear algebra, in one place, each with its reason."""

from __future__ import annotations

import math

import torch

# A factorisation or a solve is accepted if its backward error is below this many n * eps (Higham, "Accuracy and
# Stability of Numerical Algorithms", chapter 7: a stable method stays within a modest multiple of n * eps).
BACKWARD_ERROR_FACTOR = 50.0

# Features from a Gram matrix are accepted if each is within this of a unit vector orthogonal to the others (root mean
# square). An SVD in float32 leaves 1e-6. The readout of a feature that is off by d is off by about d times what other
# tasks leave there, so 1e-4 costs D* less than 1e-5.
ORTHOGONALITY = 1e-4

# The superposition may be at most this many times longer than sqrt(sum_t ||D_t||^2) (Frobenius norms). Orthogonal
# tasks give 1, T copies of one task 1 / sqrt(T), eight random full-rank tasks about 1.1. Tasks that ask for opposite
# things of almost the same directions exceed it: the exact solution then grows like 1 / distance and would destroy the
# model. Directions with an eigenvalue up to 1 / GROWTH_LIMIT^2 of the mean are then dropped and counted. For `readout`
# that guarantees the limit, since ||D*||^2 = b^T A^+ b <= ||b||^2 / smallest eigenvalue, ||b||^2 = sum_t ||D_t||^2, and
# the mean eigenvalue is 1. Dropping only as much as the limit requires would leave a D* made of noise, as long as
# allowed.
GROWTH_LIMIT = 3.0

# A task does not respond along a direction if what it writes there is below this many eps of its own norm: the rounding
# of that response is about eps of the norm, so this is where its ratio to another response is right within a percent.
SILENCE_FACTOR = 100.0

# Two tasks conflict if their matrices point apart (see conflict_cosine) and the superposition misses the readout of one
# of them by more than this relative error.
CONFLICT_ERROR = 0.1


def rcond(dtype: torch.dtype, m: int, n: int) -> float:
    """eps * max(m, n): gains of an (m, n) matrix at or below this share of the largest are rounding noise."""
    return float(torch.finfo(dtype).eps) * max(m, n)


def silence(dtype: torch.dtype) -> float:
    """The share of a task matrix's norm at or below which its response along a direction is rounding noise."""
    return SILENCE_FACTOR * float(torch.finfo(dtype).eps)


def system_rcond(dtype: torch.dtype, n_features: int) -> float:
    """The share of the largest eigenvalue at or below which eigenvalues of the (R, R) system are dropped.

    The system is a Gram matrix, so an eigenvalue is the *square* of a distance between features, and keeping one of
    size x divides the rounding of the factors by sqrt(x). At 10 eps that leaves sqrt(eps / 10), 1e-4 in float32. With a
    smaller share, rounding would decide between nearly identical tasks (directions of close gains move by far more than
    eps). Dropping x leaves a readout error of at most sqrt(x), 1e-3 in float32, unless the tasks conflict. The system
    itself is formed in float64, which sets the floor R * eps_64.

    Args:
        dtype: of the factors.
        n_features: R.
    """
    eps, eps_64 = float(torch.finfo(dtype).eps), float(torch.finfo(torch.float64).eps)
    return max(10.0 * eps, n_features * eps_64)


def conflict_cosine(m: int, n: int) -> float:
    """The cosine below which two (m, n) task matrices oppose each other.

    -0.1, or three standard deviations of the cosine of two random matrices, 1 / sqrt(m n), if that is more.
    """
    return -min(0.9, max(0.1, 3.0 / math.sqrt(m * n)))


def solve_tolerance(dtype: torch.dtype) -> float:
    """The relative residual at which the iterative solver stops: eps^(3/4), 6e-6 in float32 and 2e-12 in float64."""
    return math.pow(float(torch.finfo(dtype).eps), 0.75)
