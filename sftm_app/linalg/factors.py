"""Factors: the singular features of one matrix, and the one rule that says how many of them a rank keeps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sftm_app.errors import InputError, RecipeError

# None = all features, a count, a fraction of the full rank, or a share of the energy as text: see n_kept.
Rank = int | float | str | None


_ENERGY = re.compile(r"(\d+(?:\.\d+)?)% energy")


@dataclass(frozen=True, eq=False)
class Factors:
    """Singular features of an (m, n) matrix: U (m, r), S (r,) descending and positive, Vh (r, n); r may be 0.

    Column k of U is the write direction, row k of Vh the read direction. Signs are fixed: the entry of largest
    magnitude of each write direction is positive. Inside a cluster of equal gains only the span of the vectors is
    determined.
    `how` names the method that succeeded (see the module's docstring).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    how: str

    @property
    def rank(self) -> int:
        return int(self.S.numel())

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.U.shape[0]), int(self.Vh.shape[1])

    def cut(self, rank: Rank) -> Factors:
        """The first features only, by the rank rule of n_kept; views, not copies.

        A share of energy keeps the fewest leading gains that hold it: of the energy of these Factors, which therefore
        should be at full rank.
        """
        r = n_leading(rank, self.S, *self.shape)
        return Factors(self.U[:, :r], self.S[:r], self.Vh[:r], self.how)

    def matrix(self) -> Tensor:
        """U diag(S) Vh, (m, n)."""
        return (self.U * self.S) @ self.Vh


def n_kept(rank: Rank, m: int, n: int) -> int:
    """How many features a rank rule keeps of an (m, n) matrix, at most min(m, n).

    `rank`: None = all, an int >= 1 = that many, a float strictly between 0 and 1 = that fraction of min(m, n), rounded,
    at least one. Text such as "90% energy" = as many as hold that share of sum s^2, which depends on the matrix: here
    the most that this can be, min(m, n). Raises RecipeError for anything else, a bool or 1.0 included.
    """
    full = min(m, n)
    if rank is None:
        return full
    if isinstance(rank, str):
        energy_share(rank)
        return full
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return min(rank, full)
    if isinstance(rank, float) and 0.0 < rank < 1.0:
        return min(max(1, round(rank * full)), full)
    raise RecipeError(_no_rank(rank))


def n_leading(rank: Rank, S: Tensor, m: int, n: int) -> int:
    """How many of the gains S of an (m, n) matrix a rank rule keeps."""
    return rank_for_energy(S, energy_share(rank)) if isinstance(rank, str) else min(n_kept(rank, m, n), S.numel())


def energy_share(rank: str) -> float:
    """The share of energy, strictly between 0 and 1, that a rank such as "90% energy" stands for.

    Raises RecipeError for any other text.
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
    """A power of two near `largest`, to scale by without changing a digit; it and its inverse fit in float32."""
    return 2.0 ** min(max(math.frexp(largest)[1], -125), 125)


def cumulative_energy(S: Tensor) -> Tensor:
    """Share of sum s^2 in the first k gains, k = 1..r: (r,), float64, non-decreasing, last entry exactly 1.

    Gains that are all zero count as complete from the start.
    """
    s = S.to(torch.float64)
    if s.numel() == 0 or not float(s.max()) > 0.0:
        return torch.ones_like(s)
    total = torch.cumsum((s / s.max()) ** 2, 0)
    return total / total[-1]


def rank_for_energy(S: Tensor, fraction: float) -> int:
    """Fewest leading gains that hold at least `fraction` (0 < fraction <= 1) of the energy sum s^2; 0 for no gain."""
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"The share of energy must lie above 0 and at most at 1, but {fraction!r} was given.")
    if S.numel() == 0 or not float(S.max()) > 0.0:
        return 0
    return int((cumulative_energy(S) < fraction).sum()) + 1
