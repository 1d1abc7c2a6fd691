"""Linear algebra of singular features: tensors in, tensors out; knows no files.

svd            one task matrix -> Factors
superposition  the tasks' Factors -> coefficients a -> D*
subspace       overlap, effective rank, preservation errors
system         the linear system as an operator;  solvers: two ways to solve it;  tolerance: every threshold
"""

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.superposition import Superposition, superpose, superposed_matrix
from sftm_app.linalg.svd import Factors, factorise

__all__ = ["Conflict", "Factors", "Superposition", "factorise", "superpose", "superposed_matrix"]
