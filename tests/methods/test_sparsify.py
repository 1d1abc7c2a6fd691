"""The sparse methods against the papers' formulas, entry by entry in float64."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, random_matrices
from method_cases import merge as merge_layer
from numpy.typing import NDArray
from one_matrix_models import UP, folders, save_models
from safetensors.torch import load_file
from torch import Tensor

from sftm_app.api import merge
from sftm_app.linalg.low_rank import Delta, dense
from sftm_app.methods import METHODS
from sftm_app.planning.memory import SPAN

Array = NDArray[np.float64]


def elect(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    """Yadav et al. 2023, algorithm 1, steps 2 and 3: the elected sign, and the mean of the entries that have it."""
    votes = sum(weight * part for part, weight in zip(parts, weights, strict=True))
    total, voters = np.zeros(parts[0].shape), np.zeros(parts[0].shape)
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part * np.sign(votes)) > 0
        total += weight * np.where(agrees, part, 0.0)
        voters += weight * agrees
    return np.divide(total, voters, out=np.zeros_like(total), where=voters > 0)


def add_up(parts: Sequence[Array], weights: Sequence[float]) -> Array:
    return np.asarray(sum(weight * part for part, weight in zip(parts, weights, strict=True)))


def largest(D: Array, density: float) -> Array:
    """Yadav et al. 2023, algorithm 1, step 1."""
    n_kept = max(1, int(density * D.size))
    smallest = np.sort(np.abs(D), axis=None)[D.size - n_kept]
    return np.where(np.abs(D) >= smallest, D, 0.0)


def below_the_outliers(D: Array, density: float, gamma: float) -> Array:
    """Davari and Belilovsky 2023, equation 2: both tails of the magnitudes of a layer are masked."""
    n_kept = max(1, int(density * D.size))
    last = D.size - min(int(gamma * D.size), D.size - n_kept)
    in_order = np.sort(np.abs(D), axis=None)
    return np.where((np.abs(D) >= in_order[last - n_kept]) & (np.abs(D) <= in_order[last - 1]), D, 0.0)


def numbers(shape: Sequence[int], seed: int, task: str, name: str = "layer") -> Array:
    """The documented random numbers: by seed, task and tensor alone."""
    digest = hashlib.sha256(repr((seed, task, name)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
    return np.asarray(torch.rand(tuple(shape), generator=generator).double().numpy())


def dropped_at_random(D: Array, density: float, seed: int, task: str) -> Array:
    """Yu et al. 2023, equations 1 and 2, with a drop rate of 1 - density."""
    return np.where(numbers(D.shape, seed, task) < np.float32(density), D / density, 0.0)


def dropped_by_rank(D: Array, density: float, epsilon: float, seed: int, task: str) -> Array:
    """Deep et al. 2024, equations 1 to 4: the drop probability falls with the rank in the row."""
    rows = D.reshape(1, -1) if D.ndim < 2 else D.reshape(len(D), -1)
    n = rows.shape[1]
    ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1, kind="stable")
    keep = density - epsilon + 2 * epsilon * (ranks / (n - 1) if n > 1 else np.full(rows.shape, 0.5))
    kept = numbers(D.shape, seed, task).reshape(rows.shape) < keep.astype(np.float32)
    return np.where(kept, rows / keep, 0.0).reshape(D.shape)


def sparse(name: str, D: Array, params: Any, task: str) -> Array:
    """A task matrix as the method of this name makes it sparse."""
    if name in ("ties", "magnitude"):
        return largest(D, params.density)
    if name.startswith("breadcrumbs"):
        return below_the_outliers(D, params.density, params.gamma)
    if name.startswith("dare"):
        return dropped_at_random(D, params.density, params.seed, task)
    return dropped_by_rank(D, params.density, params.epsilon, params.seed, task)


CONSENSUS: dict[str, Callable[[Sequence[Array], Sequence[float]], Array]] = {
    "ties": elect,
    "dare_linear": add_up,
    "dare_ties": elect,
    "breadcrumbs": add_up,
    "breadcrumbs_ties": elect,
    "della": elect,
    "della_linear": add_up,
    "magnitude": add_up,
}


def formula(name: str, matrices: Sequence[Array], weights: Sequence[float], params: Any) -> Array:
    parts = [sparse(name, D, params, str(task)) for task, D in enumerate(matrices)]
    return np.asarray(params.scaling * CONSENSUS[name](parts, weights))


def check(name: str, matrices: Sequence[Delta], weights: Sequence[float], **values: Any) -> Tensor:
    """Compare with the direct formula, and return the delta."""
    method = METHODS[name]
    params = method.params(**values)
    found = delta_of(merge_layer(method, layer_of(matrices, weights), params))
    assert_close(found, torch.tensor(formula(name, [dense(D).double().numpy() for D in matrices], weights, params)))
    return found


EACH = pytest.mark.parametrize("name", CONSENSUS)


@EACH
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("shape", [(20, 13), (1, 30), (30, 1), (7,), (4, 3, 2, 2), (3, 4, 5), (1,), ()])
def test_random_tensors(name: str, shape: tuple[int, ...], weights: list[float]) -> None:
    matrices = random_matrices(3, shape)
    found = check(name, matrices, weights)
    assert tuple(found.shape) == shape
    for density in (0.3, 0.5):
        check(name, matrices, weights, density=density, scaling=0.7)


@EACH
def test_a_density_of_one_keeps_everything(name: str) -> None:
    matrices = random_matrices(3, (20, 13))
    values = {"gamma": 0.0} if "breadcrumbs" in name else {"epsilon": 0.0} if "della" in name else {}
    found = check(name, matrices, [1.0, 2.0, 0.5], density=1.0, scaling=1.0, **values)
    arrays = [D.double().numpy() for D in matrices]
    assert_close(found, torch.tensor(CONSENSUS[name](arrays, [1.0, 2.0, 0.5])))


@EACH
def test_lora_pairs_are_the_matrices_that_they_make(name: str) -> None:
    pairs = [low_rank((15, 11), rank, seed) for seed, rank in enumerate((1, 3, 4))]
    check(name, pairs, [1.0, 1.0, 1.0], density=0.3)
    check(name, [pairs[0], *random_matrices(1, (15, 11)), pairs[1]], [1.0, 0.5, 1.0], density=0.3)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_outliers(name: str, density: float, gamma: float) -> None:
    check(name, random_matrices(3, (20, 13)), [1.0, 0.5, 2.0], density=density, gamma=gamma)
    (D,) = random_matrices(1, (20, 13))
    found = check("breadcrumbs", [D], [1.0], density=density, gamma=gamma, scaling=1.0)
    n_outliers = min(int(gamma * 260), 260 - int(density * 260))
    assert int(found.count_nonzero()) == int(density * 260)
    if n_outliers:
        assert float(found.abs().max()) < float(D.abs().flatten().kthvalue(261 - n_outliers).values)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_ranks(name: str, epsilon: float) -> None:
    check(name, random_matrices(3, (20, 13)), [1.0, 0.5, 2.0], density=0.4, epsilon=epsilon)


def test_the_spread_is_cut_where_a_probability_would_leave_the_range() -> None:
    layer = layer_of(random_matrices(3, (20, 13)))
    method = METHODS["della"]
    for density, most in ((0.1, 0.1), (0.8, 0.2), (1.0, 0.0)):
        wide, cut = (delta_of(method.merge(layer, method.params(density=density, epsilon=e))) for e in (0.5, most))
        assert_close(wide, cut)
        assert bool(wide.isfinite().all())


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_what_is_dropped_is_made_up_for_on_average(name: str) -> None:
    (D,) = random_matrices(1, (64, 40))
    method, n_seeds = METHODS[name], 400
    found = torch.zeros_like(D)
    for seed in range(n_seeds):
        found += delta_of(method.merge(layer_of([D]), method.params(density=0.4, seed=seed, scaling=1.0)))
    # One entry: D / p with probability p, so a standard deviation of D sqrt(1 / p - 1), here at most 1.5 D.
    error = (found / n_seeds - D).norm() / D.norm()
    assert 0.02 < float(error) < 1.5 / n_seeds**0.5


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_a_mask_depends_on_seed_task_and_tensor_alone(name: str) -> None:
    matrices, method = random_matrices(3, (20, 13)), METHODS[name]

    def merged(order: Sequence[int] = (0, 1, 2), tensor: str = "layer", seed: int = 0, names: str = "xyz") -> Tensor:
        layer = layer_of([matrices[i] for i in order], task_names=[names[i] for i in order], name=tensor)
        return delta_of(method.merge(layer, method.params(density=0.4, seed=seed)))

    first = merged()
    assert torch.equal(merged(), first)
    assert_close(merged((2, 0, 1)), first)
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(merged(), first), "not on what was drawn before"
    torch.random.set_rng_state(state)
    for other in (merged(tensor="other"), merged(seed=1), merged(names="xyw"), merged(names="yxz")):
        assert not torch.allclose(other, first)


def test_entries_as_large_as_the_smallest_kept_are_kept_too() -> None:
    D = torch.tensor([[3.0, -2.0, 2.0, -2.0], [1.0, 1.0, -1.0, 0.0]])
    found = check("ties", [D], [1.0], density=2 / 8)
    assert found.tolist() == [[3.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]
    check("ties", [D, -D, D * 0.5], [1.0, 1.0, 1.0], density=2 / 8)
    found = check("breadcrumbs", [D], [1.0], density=2 / 8, gamma=1 / 8, scaling=1.0)
    assert found.tolist() == [[0.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]
    same = torch.full((5, 5), -0.25)
    assert torch.equal(check("ties", [same, same], [1.0, 3.0], density=0.01), same)
    assert torch.equal(check("breadcrumbs_ties", [same, same], [1.0, 3.0], density=0.1, gamma=0.2), same)


def test_zeros_are_no_votes() -> None:
    sparse = torch.zeros(6, 6)
    sparse[0, 0], sparse[2, 3] = 5.0, -1.0
    full = random_matrices(1, (6, 6))[0]
    # More entries are kept than there are numbers: the threshold is 0.
    assert torch.equal(check("ties", [sparse], [1.0], density=0.5), sparse)
    found = check("ties", [sparse, full], [1.0, 1.0], density=1.0)
    assert torch.equal(found[1], full[1]), "a task that does not change an entry does not count in its mean"
    zero = torch.zeros(6, 6)
    assert torch.equal(check("ties", [zero, full], [1.0, 1.0], density=1.0), full)
    for name in CONSENSUS:
        assert not check(name, [zero, zero], [1.0, 1.0]).any()


def test_one_task_is_trimmed_only() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert torch.equal(check("ties", [D], [2.0], density=1.0), D)
    assert int(check("ties", [D], [2.5], density=0.25).count_nonzero()) == 18


def test_opposed_tasks() -> None:
    (D,) = random_matrices(1, (9, 8))
    assert not check("ties", [D, -D], [1.0, 1.0], density=0.3).any(), "no sign is elected"
    heavier = check("ties", [D, -D], [1.0, 2.0], density=1.0)
    assert torch.equal(heavier, -D), "the heavier task wins, and the mean is over those that agree"
    check("ties", [D, -D, D], [1.0, 1.0, 1.0], density=0.5)
    check("ties", [D, -0.999 * D], [1.0, 1.0], density=1.0)


def test_the_paper_s_example_of_a_sign_conflict() -> None:
    """The elected sign is that of the larger total, though fewer tasks have it."""
    matrices = [torch.tensor([[x]]) for x in (10.0, -1.0, -2.0)]
    assert check("ties", matrices, [1.0, 1.0, 1.0], density=1.0).item() == 10.0
    found = check("ties", matrices, [1.0, 10.0, 1.0], density=1.0).item()
    assert found == pytest.approx((-1 * 10 - 2 * 1) / 11)


@pytest.mark.parametrize("measure", ["all", "none"])
def test_a_matrix_of_many_blocks_is_trimmed_and_elected_whole(tmp_path: Path, measure: str) -> None:
    """A merge in flat blocks of 131,072 elements, each with a threshold of its own, would be far off."""
    models = save_models(tmp_path, (1024, 512), 2, louder_rows=256)
    base, *tasks = folders(tmp_path, 2)
    report = merge(base, tasks, tmp_path / "out", "ties", "cpu", density=0.2, scaling=0.9, measure=measure)
    found = load_file(tmp_path / "out" / "model.safetensors")
    params = METHODS["ties"].params(density=0.2, scaling=0.9)
    for name, origin in models[0].items():
        deltas = [(task[name] - origin).double().numpy() for task in models[1:]]
        wanted = formula("ties", deltas, [1.0, 1.0], params)
        assert_close(found[name] - origin, torch.tensor(wanted), 1e-4, what=name)
        if name == UP:
            flat = [D.ravel() for D in deltas]
            spans = [slice(i, i + SPAN) for i in range(0, wanted.size, SPAN)]
            blocks = [formula("ties", [D[span] for D in flat], [1.0, 1.0], params) for span in spans]
            off = np.linalg.norm(np.concatenate(blocks) - wanted.ravel())
            assert off > 0.1 * np.linalg.norm(wanted), "otherwise this test shows nothing"
    rules = {record.role: record.rule for record in report.tensors}
    assert rules == {"matrix": "method", "embedding": "method", "norm": "method"}


@pytest.mark.parametrize("measure", ["all", "none"])
def test_a_whole_model_gets_the_documented_masks(tmp_path: Path, measure: str) -> None:
    models = save_models(tmp_path, (96, 80), 2)
    base, *tasks = folders(tmp_path, 2)
    merge(base, tasks, tmp_path / "out", "dare_linear", "cpu", density=0.3, seed=5, scaling=1.0, measure=measure)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, origin in models[0].items():
        wanted = torch.zeros(origin.shape, dtype=torch.float64)
        for folder, task in zip(tasks, models[1:], strict=True):
            kept = torch.tensor(numbers(origin.shape, 5, folder.name, name) < np.float32(0.3))
            wanted += (task[name] - origin).double() * kept / 0.3
        assert_close(found[name], origin.double() + wanted, what=name)
