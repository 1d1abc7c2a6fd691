"""Factors: the singular features of one task matrix. And the rule that says how many of them a rank keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import InputError, RecipeError

# None = all features, a count, a fraction of the full rank, a share of the energy as text (see n_kept), or AUTO (see
# settled).
Rank = int | float | str | None
AUTO = "auto"
# The share that AUTO keeps where it cuts. On the real benches it loses nothing, with a quarter of the features.
AUTO_SHARE = "90% energy"

_ENERGY = re.compile(r"(\d+(?:\.\d+)?)% energy")


@dataclass(frozen=True, eq=False)
class Factors:
    """Singular features of an (m, n) matrix, D = U diag(S) Vh.

    Signs are fixed: the entry of largest magnitude of each write direction is positive. Inside a cluster of equal gains
    only the span of the directions is determined.

    Attributes:
        U: (m, r), write directions as columns; r may be 0.
        S: (r,), gains, positive and descending.
        Vh: (r, n), read directions as rows.
        how: the method that computed them; see `svd`.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    how: str

    @property
    def rank(self) -> int:
        """How many features there are, r."""
        return int(self.S.numel())

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix."""
        return int(self.U.shape[0]), int(self.Vh.shape[1])

    def cut(self, rank: Rank) -> Factors:
        """Keep the leading features that a rank rule keeps (see n_kept), as views rather than copies.

        A share of energy refers to the energy of these Factors, so they should be at full rank.
        """
        return self.leading(n_leading(rank, self.S, *self.shape))

    def leading(self, count: int) -> Factors:
        """Keep the first `count` features, as views; 0 keeps none."""
        return Factors(self.U[:, :count], self.S[:count], self.Vh[:count], self.how)

    def matrix(self) -> Tensor:
        """U diag(S) Vh, (m, n)."""
        return (self.U * self.S) @ self.Vh


def settled(rank: Rank, n_features: int, full: int) -> Rank:
    """Turn AUTO into a rank for one layer; other ranks stay as they are.

    Args:
        rank: a rank, or AUTO: all features where the layer can hold them apart, as many as hold AUTO_SHARE elsewhere.
        n_features: of all tasks together.
        full: the full rank of the layer, which is how many features it can hold apart.
    """
    if rank != AUTO:
        return rank
    return None if n_features <= full else AUTO_SHARE


def cut_all(factors: Sequence[Factors], rank: Rank) -> list[Factors]:
    """Keep of every task of a layer what a rank keeps, as views. factors: at full rank."""
    full = min(factors[0].shape) if factors else 0
    one = settled(rank, sum(f.rank for f in factors), full)
    return [f.cut(one) for f in factors]


def n_kept(rank: Rank, m: int, n: int) -> int:
    """Count the features that a rank rule keeps of an (m, n) matrix.

    Args:
        rank: None for all, an int >= 1 for that many, a float strictly between 0 and 1 for that fraction of min(m, n)
            (rounded, at least one), text such as "90% energy" for as many as hold that share of sum s^2, or AUTO.
        m, n: the shape of the matrix.

    Returns:
        At most min(m, n). For a share of energy and AUTO, which depend on the matrices, that upper bound.

    Raises:
        RecipeError: any other rank, including a bool and 1.0.
    """
    full = min(m, n)
    if rank is None:
        return full
    if isinstance(rank, str):
        if rank != AUTO:
            energy_share(rank)
        return full
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return min(rank, full)
    if isinstance(rank, float) and 0.0 < rank < 1.0:
        return min(max(1, round(rank * full)), full)
    raise RecipeError(_no_rank(rank))


def n_leading(rank: Rank, S: Tensor, m: int, n: int) -> int:
    """Count the features that a rank rule keeps of an (m, n) matrix with the gains S (r,)."""
    return rank_for_energy(S, energy_share(rank)) if isinstance(rank, str) else min(n_kept(rank, m, n), S.numel())


def energy_share(rank: str) -> float:
    """Read the share of energy, strictly between 0 and 1, from a rank such as "90% energy".

    Raises:
        RecipeError: any other text.
    """
    found = _ENERGY.fullmatch(rank)
    share = float(found[1]) / 100 if found else 0.0
    if not 0.0 < share < 1.0:
        raise RecipeError(_no_rank(rank))
    return share


def _no_rank(rank: object) -> str:
    return (
        f"The rank {rank!r} is not understood: expected nothing (full rank), a whole number from 1 up, a fraction "
        "strictly between 0 and 1, or a share of energy such as '90% energy'. Give one of these."
    )


def power_of_two(largest: float) -> float:
    """A power of two near `largest`: dividing by it changes no digit. It and its inverse fit in float32."""
    return 2.0 ** min(max(math.frexp(largest)[1], -125), 125)


def cumulative_energy(S: Tensor) -> Tensor:
    """The share of the energy sum s^2 in the first k gains.

    Args:
        S: (r,), descending.

    Returns:
        (r + 1,) float64 for k = 0..r: non-decreasing, from 0 to exactly 1. Gains that are all zero hold everything from
        k = 1 on.
    """
    s = S.to(torch.float64)
    shares = torch.ones(s.numel() + 1, dtype=s.dtype, device=s.device)
    if s.numel():
        shares[0] = 0.0
        if float(s.max()) > 0.0:
            total = torch.cumsum((s / s.max()) ** 2, 0)
            shares[1:] = total / total[-1]
    return shares


def rank_for_energy(S: Tensor, fraction: float) -> int:
    """Count the fewest leading gains that hold at least a share of the energy sum s^2.

    Args:
        S: (r,), descending.
        fraction: the share, above 0 and at most 1.

    Returns:
        0..r; 0 without gains.

    Raises:
        InputError: the share is out of range.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"The share of energy must be above 0 and at most 1, but {fraction!r} was given.")
    if S.numel() == 0 or not float(S.max()) > 0.0:
        return 0
    return int((cumulative_energy(S) < fraction).sum())
