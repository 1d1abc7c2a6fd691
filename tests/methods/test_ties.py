"""TIES against the paper's three steps, entry by entry in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from numpy.typing import NDArray
from one_matrix_models import UP, folders, save_models
from safetensors.torch import load_file
from torch import Tensor

from sftm_app.api import merge
from sftm_app.linalg.low_rank import dense
from sftm_app.methods.ties import METHOD, TiesParams
from sftm_app.planning.memory import SPAN

Array = NDArray[np.float64]


def ties(matrices: Sequence[Array], weights: Sequence[float], density: float, scaling: float = 1.0) -> Array:
    """Yadav et al. 2023, algorithm 1: trim, elect, disjoint mean, with task weights."""
    total, voters, votes = (np.zeros(matrices[0].shape) for _ in range(3))
    trimmed = []
    for D, weight in zip(matrices, weights, strict=True):
        n_kept = max(1, round(density * D.size))
        smallest = np.sort(np.abs(D), axis=None)[D.size - n_kept]
        trimmed.append(np.where(np.abs(D) >= smallest, D, 0.0))
        votes += weight * trimmed[-1]
    for part, weight in zip(trimmed, weights, strict=True):
        agrees = (part * np.sign(votes)) > 0
        total += weight * np.where(agrees, part, 0.0)
        voters += weight * agrees
    return scaling * np.divide(total, voters, out=np.zeros_like(total), where=voters > 0)


def check(matrices: Sequence[Tensor], weights: Sequence[float], density: float, scaling: float = 1.0) -> Tensor:
    """Compare with the direct formula, and return the delta."""
    found = delta_of(METHOD.merge(layer_of(matrices, weights), TiesParams(density=density, scaling=scaling)))
    wanted = ties([dense(D).double().numpy() for D in matrices], weights, density, scaling)
    assert_close(found, torch.tensor(wanted))
    return found


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(20, 13), (1, 30), (30, 1)])
def test_random_matrices(shape: tuple[int, int], density: float, weights: list[float]) -> None:
    check(random_matrices(3, shape), weights, density, 0.7)


@pytest.mark.parametrize("shape", [(7,), (4, 3, 2, 2), (3, 4, 5), (1,), ()])
def test_tensors_of_other_shapes(shape: tuple[int, ...]) -> None:
    found = check(random_matrices(3, shape), [1.0, 2.0, 0.5], 0.4)
    assert tuple(found.shape) == shape


def test_lora_pairs_are_trimmed_as_the_matrices_that_they_make() -> None:
    pairs = [low_rank((15, 11), rank, seed) for seed, rank in enumerate((1, 3, 4))]
    check(pairs, [1.0, 1.0, 1.0], 0.3)
    check([pairs[0], *random_matrices(1, (15, 11)), pairs[1]], [1.0, 0.5, 1.0], 0.3)


def test_entries_as_large_as_the_smallest_kept_are_kept_too() -> None:
    D = torch.tensor([[3.0, -2.0, 2.0, -2.0], [1.0, 1.0, -1.0, 0.0]])
    found = check([D], [1.0], 2 / 8)
    assert found.tolist() == [[3.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]
    check([D, -D, D * 0.5], [1.0, 1.0, 1.0], 2 / 8)
    same = torch.full((5, 5), -0.25)
    assert torch.equal(check([same, same], [1.0, 3.0], 0.01), same)


def test_zeros_are_no_votes() -> None:
    sparse = torch.zeros(6, 6)
    sparse[0, 0], sparse[2, 3] = 5.0, -1.0
    full = random_matrices(1, (6, 6))[0]
    # More entries are kept than there are numbers: the threshold is 0.
    assert torch.equal(check([sparse], [1.0], 0.5), sparse)
    found = check([sparse, full], [1.0, 1.0], 1.0)
    assert torch.equal(found[1], full[1]), "a task that does not change an entry does not count in its mean"
    zero = torch.zeros(6, 6)
    assert torch.equal(check([zero, full], [1.0, 1.0], 1.0), full)
    assert not check([zero, zero], [1.0, 1.0], 0.2).any()


def test_one_task_is_trimmed_only() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert torch.equal(check([D], [2.0], 1.0), D)
    assert int(check([D], [2.5], 0.25).count_nonzero()) == 18


def test_opposed_tasks() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert not check([D, -D], [1.0, 1.0], 0.3).any(), "no sign is elected"
    heavier = check([D, -D], [1.0, 2.0], 1.0)
    assert torch.equal(heavier, -D), "the heavier task wins, and the mean is over those that agree"
    check([D, -D, D], [1.0, 1.0, 1.0], 0.5)
    check([D, -0.999 * D], [1.0, 1.0], 1.0)


def test_the_paper_s_example_of_a_sign_conflict() -> None:
    """The elected sign is that of the larger total, though fewer tasks have it."""
    matrices = [torch.tensor([[x]]) for x in (10.0, -1.0, -2.0)]
    assert check(matrices, [1.0, 1.0, 1.0], 1.0).item() == 10.0
    assert check(matrices, [1.0, 10.0, 1.0], 1.0).item() == pytest.approx((-1 * 10 - 2 * 1) / 11)


@pytest.mark.parametrize("measure", ["all", "none"])
def test_a_matrix_of_many_blocks_is_trimmed_and_elected_whole(tmp_path: Path, measure: str) -> None:
    """A merge in flat blocks of 131,072 elements, each with a threshold of its own, would be far off."""
    models = save_models(tmp_path, (1024, 512), 2, louder_rows=256)
    base, *tasks = folders(tmp_path, 2)
    report = merge(base, tasks, tmp_path / "out", "ties", "cpu", density=0.2, scaling=0.9, measure=measure)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, origin in models[0].items():
        deltas = [(task[name] - origin).double().numpy() for task in models[1:]]
        wanted = ties(deltas, [1.0, 1.0], 0.2, 0.9)
        assert_close(found[name] - origin, torch.tensor(wanted), 1e-4, what=name)
        if name == UP:
            flat = [D.ravel() for D in deltas]
            blocks = [ties([D[i : i + SPAN] for D in flat], [1.0, 1.0], 0.2, 0.9) for i in range(0, wanted.size, SPAN)]
            off = np.linalg.norm(np.concatenate(blocks) - wanted.ravel())
            assert off > 0.1 * np.linalg.norm(wanted), "otherwise this test shows nothing"
    rules = {record.role: record.rule for record in report.tensors}
    assert rules == {"matrix": "method", "embedding": "method", "norm": "method"}
