"""Measures of features: closed forms on cases where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st
from linalg_cases import SETTINGS, distance, gaussian, mapping_error, orthogonal, readout_error, task_matrices
from torch import Tensor

from sftm_app.errors import InputError
from sftm_app.linalg import factorise
from sftm_app.linalg.factors import cumulative_energy, rank_for_energy
from sftm_app.linalg.overlap import (
    effective_rank,
    energy_overlap,
    energy_overlaps,
    gain_clusters,
    principal_angles,
    random_overlap,
    random_principal_angles,
    stable_rank,
)
from sftm_app.linalg.system import block, gram

gains = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


@pytest.mark.parametrize(("dim", "rank"), [(6, 6), (9, 3), (40, 5)])
def test_energy_overlap_is_the_cosine_of_weighted_projectors(dim: int, rank: int) -> None:
    X = [orthogonal(dim, seed)[:, :rank] for seed in range(5)]
    s = [torch.rand(rank, dtype=torch.float64) + 0.1 * seed for seed in range(5)]
    projectors = [(x * g**2 / (g**2).sum()) @ x.T for x, g in zip(X, s, strict=True)]
    wanted = torch.tensor([[float((p * q).sum() / (p.norm() * q.norm())) for q in projectors] for p in projectors])
    assert_close(energy_overlap(X, s), wanted, 1e-6)
    assert_close(energy_overlap(X[:2], s[:2]), wanted[:2, :2], 1e-6)


def test_energy_overlap_at_its_ends() -> None:
    E = torch.eye(4)
    ones = torch.ones(2)
    X, gains = [E[:, :2], E[:, :2], E[:, 2:], E[:, :0]], [3 * ones, 1e-20 * ones, ones, torch.ones(0)]
    wanted = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert_close(energy_overlap(X, gains), torch.tensor(wanted))
    # The same directions, other shares: p = (1, 0), q = (1/2, 1/2) give 1 / sqrt(2), not 1.
    other = energy_overlap([E[:, :2], E[:, :2]], [torch.tensor([1.0, 0.0]), ones])
    assert float(other[0, 1]) == pytest.approx(math.sqrt(0.5))
    assert energy_overlap([E], [torch.zeros(4)]).tolist() == [[0.0]]
    assert energy_overlap([], []).shape == (0, 0)


@given(matrices=task_matrices(max_tasks=3))
@SETTINGS
def test_energy_overlaps_are_those_of_directions_and_of_whole_features(matrices: list[Tensor]) -> None:
    factors = [factorise(D) for D in matrices]
    gains = [f.S for f in factors]
    read, write, both = energy_overlaps(factors)
    assert_close(read, energy_overlap([f.Vh.T for f in factors], gains))
    assert_close(write, energy_overlap([f.U for f in factors], gains))
    features = [torch.einsum("mk,kn->mnk", f.U, f.Vh).flatten(0, 1) for f in factors]
    assert_close(both, energy_overlap(features, gains))
    assert bool((both <= torch.minimum(read, write) + 1e-5).all())


def test_random_overlap_is_the_mean_of_random_directions() -> None:
    assert random_overlap(1) == pytest.approx(1.0)
    assert random_overlap(2) == pytest.approx(2 / math.pi)
    assert random_overlap(3) == pytest.approx(0.5)
    assert random_overlap(4096) == pytest.approx(math.sqrt(2 / (math.pi * 4096)), rel=1e-3)
    X, Y = (torch.nn.functional.normalize(gaussian(20_000, 16, seed), dim=1) for seed in (1, 2))
    assert float((X * Y).sum(1).abs().mean()) == pytest.approx(random_overlap(16), rel=0.03)
    with pytest.raises(InputError, match="at least 1"):
        random_overlap(0)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-7, 0.1, 0.7, 0.8, 1.5, math.pi / 2 - 1e-7, math.pi / 2])
def test_principal_angles_small_and_large(angle: float) -> None:
    Q = orthogonal(8, 1)
    A = Q[:, :3]
    B = torch.stack([Q[:, 0], math.cos(angle) * Q[:, 1] + math.sin(angle) * Q[:, 5]], 1) @ orthogonal(2, 2)
    for first, second in ((A, B), (B, A)):
        angles = principal_angles(first, second)
        assert angles.shape == (2,)
        assert float(angles[0]) == pytest.approx(0.0, abs=1e-14)
        assert float(angles[1]) == pytest.approx(angle, rel=1e-12, abs=2e-15)


def test_principal_angles_do_not_depend_on_the_basis() -> None:
    A, B = orthogonal(10, 1)[:, :4], orthogonal(10, 2)[:, :6]
    assert distance(principal_angles(A @ orthogonal(4, 3), B @ orthogonal(6, 4)), principal_angles(A, B)) < 1e-12
    angles = principal_angles(A, B)
    assert bool((angles.diff() >= 0).all())
    assert distance(torch.cos(angles), torch.linalg.svdvals(A.T @ B)) < 1e-12
    assert principal_angles(A[:, :0], B).shape == (0,)


@pytest.mark.parametrize(("dim", "k"), [(2, 1), (9, 1), (16, 3), (16, 8), (16, 12), (16, 15), (48, 5), (200, 30)])
def test_angles_of_random_spaces_are_the_means_of_random_draws(dim: int, k: int) -> None:
    draws = [
        principal_angles(*(torch.linalg.qr(gaussian(dim, k, 2 * seed + side))[0] for side in range(2)))
        for seed in range(150 if dim < 100 else 10)
    ]
    wanted, angles = torch.rad2deg(torch.stack(draws).mean(0)), torch.rad2deg(random_principal_angles(dim, k))
    assert angles.shape == (k,) and bool((angles.diff() >= 0).all())
    assert float((angles - wanted).abs().max()) < 4.0
    n_met = max(0, 2 * k - dim)
    assert angles[:n_met].tolist() == [0.0] * n_met and not bool((angles[n_met:] == 0).any())


def test_angles_of_random_spaces_at_their_ends() -> None:
    assert random_principal_angles(5, 0).shape == (0,) and random_principal_angles(5, 5).tolist() == [0.0] * 5
    # Two random halves of a space have angles spread evenly over 0 to 90 degrees.
    evenly = (torch.arange(16, dtype=torch.float64) + 0.5) / 16 * math.pi / 2
    assert distance(random_principal_angles(32, 16), evenly) < 1e-5
    with pytest.raises(InputError, match="but 6 was given"):
        random_principal_angles(5, 6)


@pytest.mark.parametrize(
    ("gains", "clusters"),
    [
        ([], ()),
        ([2.0], ()),
        ([2.0, 1.0], ()),
        ([2.0, 2.0], ((0, 2),)),
        ([1.0] * 5, ((0, 5),)),
        ([5.0, 4.99, 4.98, 1.0], ((0, 3),)),
        ([5.0, 4.9, 1.0], ()),  # 2 % apart
        ([5.0, 4.999, 4.99, 1.0], ((0, 3),)),  # the largest run, not a pair inside it
        ([5.0, 4.99, 4.95, 4.9], ()),  # equally close all along: no span is better determined than its vectors
        ([3.0, 1.001, 1.0, 0.5, 0.4999, 0.4998], ((1, 3), (3, 6))),
    ],
)
def test_clusters_are_runs_of_nearly_equal_gains_that_stand_apart(gains: list[float], clusters: object) -> None:
    for dtype in (torch.float32, torch.float64):
        assert gain_clusters(torch.tensor(gains, dtype=dtype)) == clusters
        assert gain_clusters(1e-20 * torch.tensor(gains, dtype=dtype)) == clusters


@given(S=gains)
@SETTINGS
def test_clusters_follow_their_definition(S: Tensor) -> None:
    n = S.numel()

    def stands_apart(start: int, stop: int) -> bool:
        spread = float(S[start] - S[stop - 1])
        gaps = [float(S[at] - S[at + 1]) for at in (start - 1, stop - 1) if 0 <= at < n - 1]
        return spread <= 0.01 * float(S[start]) and all(gap > 0 and 10 * spread <= gap for gap in gaps)

    runs = [(i, j) for i in range(n) for j in range(i + 2, n + 1) if stands_apart(i, j)]
    largest = [r for r in runs if not any(q != r and q[0] <= r[0] and r[1] <= q[1] for q in runs)]
    assert gain_clusters(S) == tuple(largest)


def test_the_vectors_of_a_cluster_move_while_its_span_stays() -> None:
    """What the marking says: here with the disturbance of one gap, the span moves by a tenth of it at most."""
    U, V = orthogonal(12, 1), orthogonal(12, 2)
    S = torch.tensor([4.0, 3.0, 2.999, 2.0], dtype=torch.float64)
    ((start, stop),) = gain_clusters(S)
    noise = gaussian(12, 12, 3)
    noise *= 2e-3 / torch.linalg.matrix_norm(noise, 2)
    before, after = (factorise((U[:, :4] * S) @ V[:, :4].T + E) for E in (0 * noise, noise))
    single = principal_angles(before.U[:, start : start + 1], after.U[:, start : start + 1])
    span = principal_angles(before.U[:, start:stop], after.U[:, start:stop])
    assert float(span.max()) < 0.005 and float(single.max()) > 10 * float(span.max())


def test_the_tail_of_noise_is_not_marked_as_a_whole() -> None:
    S = torch.linalg.svdvals(gaussian(300, 300, 5))
    assert sum(stop - start for start, stop in gain_clusters(S)) < 0.1 * 300
    assert gain_clusters(torch.linspace(1.0, 0.5, 4096)) == ()


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7.0) and stable_rank(torch.ones(7)) == pytest.approx(7.0)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1.0)
    p = (2 / 3, 1 / 3)
    assert effective_rank(torch.tensor([2.0, 1.0])) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert stable_rank(torch.tensor([2.0, 1.0])) == pytest.approx(1.25)
    for empty in (torch.zeros(0), torch.zeros(3)):
        assert effective_rank(empty) == stable_rank(empty) == 0.0 and rank_for_energy(empty, 0.9) == 0


@given(S=gains, exponent=st.sampled_from([-30, 0, 30]))
@SETTINGS
def test_ranks_lie_between_one_and_the_number_of_gains_and_ignore_scale(S: Tensor, exponent: int) -> None:
    scaled = (S * 10.0**exponent).float()
    for measure in (effective_rank, stable_rank):
        assert 1.0 - 1e-9 <= measure(S) <= S.numel() + 1e-9
        assert measure(scaled) == pytest.approx(measure(S), rel=1e-5)


@given(S=gains, fraction=st.floats(0.01, 1.0))
@SETTINGS
def test_rank_for_energy_is_the_fewest_gains_that_reach_it(S: Tensor, fraction: float) -> None:
    energy = cumulative_energy(S)[1:]
    assert bool((energy.diff() >= 0).all()) and float(energy[-1]) == 1.0
    assert float(energy[0]) == pytest.approx(float(S[0] ** 2 / (S**2).sum()))
    k = rank_for_energy(S, fraction)
    assert 1 <= k <= S.numel() and float(energy[k - 1]) >= fraction
    assert k == 1 or float(energy[k - 2]) < fraction


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.01, math.nan])
def test_impossible_shares_of_energy_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="share of energy"):
        rank_for_energy(torch.ones(3), fraction)


def test_energy_of_no_gains() -> None:
    assert cumulative_energy(torch.zeros(0)).tolist() == [1.0]
    assert cumulative_energy(torch.zeros(2)).tolist() == [0.0, 1.0, 1.0]


@given(matrices=task_matrices(max_tasks=2))
@SETTINGS
def test_preservation_errors_follow_their_formulas(matrices: list[Tensor]) -> None:
    D, f = matrices[0], factorise(matrices[-1])
    if f.rank == 0:
        assert readout_error(D, f) == mapping_error(D, f) == 0.0
        return
    read = torch.stack([f.U[:, k] @ D @ f.Vh[k] for k in range(f.rank)])
    assert readout_error(D, f) == pytest.approx(float((read - f.S).norm() / f.S.norm()), abs=1e-12)
    written = D @ f.Vh.T - f.U @ torch.diag(f.S)
    assert mapping_error(D, f) == pytest.approx(float(written.norm() / f.S.norm()), abs=1e-12)
    assert readout_error(D, f) <= mapping_error(D, f) + 1e-12


def test_preservation_errors_of_known_merges() -> None:
    D = gaussian(9, 7, 1, torch.float32)
    f = factorise(D)
    for error in (readout_error, mapping_error):
        assert error(D, f) < 1e-6
        assert error(torch.zeros_like(D), f) == pytest.approx(1.0)
        assert error(2 * D, f) == pytest.approx(1.0, rel=1e-5)
        assert error(D.double(), f) < 1e-6
        tiny = factorise(D * 1e-30)
        assert error(D * 1e-30, tiny) < 1e-6 and error(D * 0, tiny) == pytest.approx(1.0)
    leak = f.U[:, :1] @ f.Vh[1:2]
    assert readout_error(D + leak, f) < 1e-6 < mapping_error(D + leak, f)


def test_A_of_the_first_features_is_a_part_of_the_whole() -> None:
    factors = [factorise(gaussian(8, 6, 1)), factorise(gaussian(8, 6, 2), 2)]
    A = gram(factors)
    assert A.shape == (8, 8) and float(A.abs().max()) <= 1.0 + 1e-12
    k, j = 3, 7
    direct = (factors[0].U[:, k] @ factors[1].U[:, j - 6]) * (factors[0].Vh[k] @ factors[1].Vh[j - 6])
    assert float(A[k, j]) == pytest.approx(float(direct))
    keep = [0, 1, 2, 6, 7]
    assert distance(gram([f.leading(3) for f in factors]), A[keep][:, keep]) < 1e-14
    assert distance(block(*factors), A[:6, 6:]) < 1e-14
