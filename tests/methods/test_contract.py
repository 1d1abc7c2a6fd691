"""What the engine relies on, for every method in the table."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from closeness import assert_close
from method_cases import delta_of, layer_of, low_rank, merge, prepared, random_matrices
from torch import Tensor

from sftm_app.engine.task_matrices import TaskMatrices
from sftm_app.linalg.low_rank import Delta, dense, weighted_sum
from sftm_app.linalg.superposition import superpose, superposed_delta
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.workspace import LayerSize
from sftm_app.methods import METHODS
from sftm_app.methods.base import Features, Layer, Method
from sftm_app.methods.params import controls
from sftm_app.output.meter import MemoryMeter

SHAPE = (9, 7)
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
SCALED = [method for method in METHODS.values() if "scaling" in controls(method.params)]
ELEMENTWISE = [method for method in METHODS.values() if method.elementwise]
PREDICTED = [method for method in METHODS.values() if method.predict]


def names(methods: Sequence[Method]) -> list[str]:
    return [method.name for method in methods]


def matrices_for(method: Method, shape: tuple[int, int] = SHAPE, n_tasks: int = 3) -> list[Tensor]:
    return random_matrices(method.n_tasks or n_tasks, shape)


def weights_for(method: Method) -> list[float]:
    return [1.0, 0.5, 2.0][: method.n_tasks or 3]


def all_params(method: Method) -> list[Any]:
    """The defaults, and every choice, an end of every range and a low rank, one at a time."""
    found = [method.params()]
    for name, control in controls(method.params).items():
        values: Sequence[Any] = control.choices
        if control.kind == "number":
            values = [control.minimum, control.maximum]
        elif control.kind == "rank":
            values = [2, 0.5, "90% energy"]
        found += [method.params(**{name: value}) for value in values]
    return found


@EACH
def test_the_delta_has_the_shape_of_the_task_matrices_and_what_is_given_stays(method: Method) -> None:
    for params in all_params(method):
        for shape in ((5, 4), (4, 5), (1, 3), (3, 1)):
            base, *matrices = random_matrices(1 + (method.n_tasks or 3), shape)
            kept = [tensor.clone() for tensor in (base, *matrices)]
            delta = delta_of(merge(method, layer_of(matrices, weights_for(method), base), params))
            assert delta.shape == shape and bool(delta.isfinite().all())
            assert all(torch.equal(one, was) for one, was in zip((base, *matrices), kept, strict=True))


@EACH
def test_tasks_without_a_change_add_nothing(method: Method) -> None:
    zeros = [torch.zeros(SHAPE)] * (method.n_tasks or 3)
    for base in (torch.zeros(SHAPE), random_matrices(1, SHAPE)[0]):
        delta = delta_of(merge(method, layer_of(zeros, base=base), method.params()))
        assert float(delta.abs().max()) <= 1e-6, method.name


@pytest.mark.parametrize("method", SCALED, ids=names(SCALED))
def test_the_delta_is_proportional_to_the_scaling(method: Method) -> None:
    """The engine caches a layer at scaling 1 and multiplies."""
    matrices, weights = matrices_for(method), weights_for(method)
    control = controls(method.params)["scaling"]
    assert control.minimum <= 1.0 <= control.maximum, "the engine merges at scaling 1"
    for params in all_params(method):
        one = delta_of(merge(method, layer_of(matrices, weights), dataclasses.replace(params, scaling=1.0)))
        for scaling in (0.0, 0.3, 2.0):
            scaled = delta_of(merge(method, layer_of(matrices, weights), dataclasses.replace(params, scaling=scaling)))
            assert_close(scaled, scaling * one, scale=float(one.abs().max()))


@pytest.mark.parametrize("method", ELEMENTWISE, ids=names(ELEMENTWISE))
def test_an_elementwise_method_gives_the_same_in_pieces(method: Method) -> None:
    base, *matrices = random_matrices(4, (6, 11))
    weights = weights_for(method)
    for params in all_params(method):
        whole = delta_of(merge(method, layer_of(matrices, weights, base, 0.5), params)).flatten()
        for start, end in ((0, 1), (1, 30), (30, 66)):
            pieces = [D.flatten()[start:end] for D in matrices]
            layer = layer_of(pieces, weights, base.flatten()[start:end], 0.5)
            assert torch.equal(delta_of(merge(method, layer, params)), whole[start:end])


@EACH
def test_the_order_of_tasks_does_not_matter(method: Method) -> None:
    base, *matrices = random_matrices(1 + (method.n_tasks or 3), SHAPE)
    tasks = list(zip(matrices, weights_for(method), "abc", strict=False))
    for params in all_params(method):
        found = []
        for order in itertools.permutations(tasks):
            given, weights, task_names = zip(*order, strict=True)
            found.append(delta_of(merge(method, layer_of(given, weights, base, task_names=task_names), params)))
        for other in found[1:]:
            assert_close(other, found[0], 1e-4, scale=float(found[0].abs().max()) or 1.0)


@EACH
def test_lora_pairs_give_what_their_products_give(method: Method) -> None:
    pairs = [low_rank(SHAPE, 1 + seed, seed) for seed in range(method.n_tasks or 3)]
    (base,) = random_matrices(1, SHAPE)
    mixed: list[Delta] = [dense(pairs[0]), *pairs[1:]]
    for given in (pairs, mixed):
        products = [dense(D) for D in given]
        found, wanted = (
            delta_of(merge(method, layer_of(matrices, weights_for(method), base), method.params()))
            for matrices in (given, products)
        )
        assert_close(found, wanted, 1e-4)


@pytest.mark.parametrize("method", PREDICTED, ids=names(PREDICTED))
@pytest.mark.parametrize("idle", [0.0, 1.5])
@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (12, 4)])
def test_what_is_predicted_is_what_is_merged(method: Method, idle: float, shape: tuple[int, int]) -> None:
    assert method.predict is not None
    matrices, weights = matrices_for(method, shape), weights_for(method)
    factors = [factorise(D) for D in matrices]
    for params in all_params(method):
        named = method.predict(factors, weights, idle, params)
        cut = [f.cut(count) for f, count in zip(factors, named.counts, strict=True)]
        if named.variant is None:
            formed = dense(weighted_sum([f.matrix() for f in cut], [named.share * weight for weight in named.weights]))
        else:
            solved = superpose(cut, named.variant, weights=named.weights, metric=named.metric)
            formed = dense(superposed_delta(cut, solved)).to(cut[0].U)
        delta = delta_of(merge(method, layer_of(matrices, weights, idle=idle), params))
        assert_close(named.factor * formed, delta, 1e-4, scale=float(delta.abs().max()) or 1.0)


@EACH
def test_workspace_and_operations_grow_with_the_layer(method: Method) -> None:
    params = method.params()
    found = []
    for m, n in ((256, 128), (512, 256), (2048, 1024), (1024, 4096)):
        size = size_of(m, n, method.n_tasks or 3)
        found.append((method.workspace(size, params), method.operations(size, params)))
        assert found[-1][0] >= size.matrix_bytes, "at least the delta"
    assert found == sorted(found) and all(min(pair) > 0 for pair in found)


@EACH
def test_features_are_those_of_a_rank_or_none(method: Method) -> None:
    if method.features is None:
        assert "rank" not in controls(method.params) or method.predict is None
        return
    for rank in (None, 3, 0.5, "90% energy"):
        params = dataclasses.replace(method.params(), rank=rank)
        assert method.features(params) == rank


def test_only_linear_maps_have_features() -> None:
    sftm = METHODS["sftm"]
    with pytest.raises(ValueError, match="sftm: only linear maps have features"):
        dataclasses.replace(sftm, roles={"embedding": "method", "bias": "sum", "norm": "average"})


def size_of(m: int, n: int, n_tasks: int) -> LayerSize:
    k = min(m, n)
    return LayerSize(m, n, (k,) * n_tasks, (False,) * n_tasks, 4 * m * n, 0)


@pytest.fixture(scope="module")
def took() -> Iterator[Callable[..., int]]:
    """What a method's merge takes, in a process that does nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda *given: pool.submit(measure, *given).result()


def measure(name: str, params: Any, m: int, n: int) -> int:
    """Bytes that merge takes at most beyond the base, the third time it is called."""
    torch.set_num_threads(1)
    method = METHODS[name]
    n_tasks = method.n_tasks or 3
    base = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(3):
        matrices = TaskMatrices(lambda task: _read(m, n, task), range(n_tasks))
        rank = method.features(params) if method.features else None

        def factors(matrices: Sequence[Delta] = matrices, rank: Any = rank) -> list[Features]:
            return [Features(factorise(matrices[task], rank)) for task in range(len(matrices))]

        layer = Layer(matrices, [1.0] * n_tasks, lambda: base, factors, task_names=[*"abc"][:n_tasks])
        layer = prepared(method, layer, params)
        with MemoryMeter(torch.device("cpu")) as meter:
            del_me = method.merge(layer, params)
            found.append(meter.look())
            del del_me
    return min(found[1:])


def _read(m: int, n: int, task: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(task + 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the exact peak")
@pytest.mark.parametrize(("m", "n"), [(512, 1024), (1024, 512)])
@EACH
def test_a_merge_takes_no_more_than_its_workspace(method: Method, m: int, n: int, took: Callable[..., int]) -> None:
    for params in all_params(method):
        allowed = method.workspace(size_of(m, n, method.n_tasks or 3), params)
        assert took(method.name, params, m, n) <= 1.2 * allowed, params
