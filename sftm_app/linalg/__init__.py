"""Linear algebra of singular features: tensors in, tensors out; knows no files.

svd            one task matrix -> Factors; low_rank: a matrix as the product of two thin ones
superposition  the tasks' Factors -> coefficients a -> D*
subspace       overlap, effective rank, preservation errors
interactions   A of all features, kept: products and solves at any rank;  coupled: their preconditioner
system         the linear system as an operator;  solvers: two ways to solve it;  tolerance: every threshold
"""

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.superposition import Superposition, superpose, superposed_delta, superposed_matrix
from sftm_app.linalg.svd import factorise

__all__ = [
    "Conflict",
    "Delta",
    "Factors",
    "LowRank",
    "Superposition",
    "factorise",
    "superpose",
    "superposed_delta",
    "superposed_matrix",
]
