"""Orthogonal directions for all tasks, and what finding them takes."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close

from sftm_app.linalg.operations import factorise_operations, thin_operations
from sftm_app.linalg.svd import factorise
from sftm_app.linalg.whitening import orthogonalise, whitening_bytes, whitening_operations
from sftm_app.linalg.workspace import LayerSize


@pytest.mark.parametrize("n_threads", [1, 2])
def test_both_sides_are_the_nearest_orthonormal_ones(n_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [factorise(torch.randn(30, 20, generator=generator), count) for count in (4, 6, 3)]
    left, right, gains = orthogonalise(factors, [1.0, 0.5, 2.0], n_threads)
    for found, side in ((left, torch.cat([f.U for f in factors], 1)), (right.T, torch.cat([f.Vh for f in factors]).T)):
        U, _, Vh = torch.linalg.svd(side.double(), full_matrices=False)
        assert_close(found, U @ Vh, 1e-5)
        assert_close(found.T @ found, torch.eye(13), 1e-5)
    assert_close(gains, torch.cat([factors[0].S, factors[1].S * 0.5, factors[2].S * 2]))


def size_of(m: int, n: int, rank: int = 0, n_at_once: int = 1) -> LayerSize:
    return LayerSize(m, n, (rank or min(m, n),) * 3, (bool(rank),) * 3, 4 * m * n, 0, n_at_once)


def test_bytes_and_operations_grow_with_the_layer_and_the_rank() -> None:
    for function in (whitening_bytes, whitening_operations):
        found = [function(size_of(*shape), 64) for shape in ((128, 128), (256, 128), (256, 1024))]
        assert found == sorted(found) and found[0] < found[-1]
        assert function(size_of(256, 256), 32) < function(size_of(256, 256), 64)
    assert whitening_bytes(size_of(256, 256), 64) < whitening_bytes(size_of(256, 256, n_at_once=2), 64)
    # All directions, their polar factors, and the result.
    assert whitening_bytes(size_of(256, 256), 64) >= 4 * (2 * 64 * (256 + 256) + 256 * 256)


def test_few_features_and_adapters_take_less_to_factorise() -> None:
    size = size_of(512, 256)
    few, half, all_of = (factorise_operations(size, [count] * 3) for count in (16, 129, 256))
    assert few < half < all_of
    assert factorise_operations(size_of(512, 256, rank=16), [16] * 3) == 3 * thin_operations(512, 256, 16) < few
    assert factorise_operations(size_of(32, 16), [16] * 3) > 0
