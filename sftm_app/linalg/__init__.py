"""Linear algebra of singular features: tensors in, tensors out. Knows no files.

factors         Factors (the singular features of one task matrix) and the rank rule
low_rank        Delta: a dense matrix, or a product of two thin ones
svd, gram_svd   task matrix -> Factors
superposition   Factors of all tasks -> coefficients -> D*
system          its linear system as an operator;  solvers: two ways to solve it
conflicts       tasks that oppose each other
polar           the nearest matrix with orthonormal columns;  whitening: of all tasks' directions together
interference    the matrix that interferes least with the inputs of any task
core_space      adapters in the space that they share, where their matrices are small
calibration     shrinks directions into which a merge adds up more than a task has there
preservation    readout and mapping error of any delta
overlap         what tasks have in common: overlaps, angles, clusters of gains, effective rank
feature_gram    A of all features, stored, for solves in milliseconds;  preconditioner: what makes them quick
workspace       bytes that all of this takes, from shapes and ranks alone;  operations: of factorising
parallel        items in parallel, one thread each
tolerance       every threshold;  failures: what a library's error means
"""

from sftm_app.linalg.conflicts import Conflict
from sftm_app.linalg.factors import Factors
from sftm_app.linalg.low_rank import Delta, LowRank
from sftm_app.linalg.solvers import Outcome
from sftm_app.linalg.superposition import Superposition, superpose, superposed_delta
from sftm_app.linalg.svd import factorise

__all__ = [
    "Conflict",
    "Delta",
    "Factors",
    "LowRank",
    "Outcome",
    "Superposition",
    "factorise",
    "superpose",
    "superposed_delta",
]
