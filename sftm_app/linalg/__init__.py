"""Linear algebra of singular features: tensors in, tensors out; knows no files.

svd            one task matrix -> Factors; low_rank: a matrix as the product of two thin ones
superposition  the tasks' Factors -> coefficients a -> D*
subspace       overlap, effective rank, preservation errors
interactions   A of all features, kept: products and solves at any rank;  coupled: their preconditioner
system         the linear system as an operator;  solvers: two ways to solve it;  tolerance: every threshold
"""

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.low_rank import Change, LowRank
from sftm_app.linalg.superposition import Superposition, superpose, superposed_change, superposed_matrix
from sftm_app.linalg.svd import Factors, factorise

__all__ = [
    "Change",
    "Conflict",
    "Factors",
    "LowRank",
    "Superposition",
    "factorise",
    "superpose",
    "superposed_change",
    "superposed_matrix",
]
