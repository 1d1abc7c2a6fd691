"""Adapters in the space that they share."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close

from sftm_app.linalg.core_space import core_bytes, core_operations, core_size, core_space
from sftm_app.linalg.low_rank import LowRank, dense
from sftm_app.linalg.workspace import LayerSize


def pairs(m: int, n: int, ranks: tuple[int, ...]) -> list[LowRank]:
    generator = torch.Generator().manual_seed(0)
    return [
        LowRank(torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)) for rank in ranks
    ]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (4, 50), (50, 4), (3, 3)])
def test_expanding_a_core_gives_its_task_matrix(shape: tuple[int, int]) -> None:
    given = pairs(*shape, (2, 3, 1))
    space = core_space(given)
    assert space is not None
    p, q = (min(6, side) for side in shape)
    for D, core in zip(given, space.cores, strict=True):
        assert core.shape == (p, q) and core.dtype == torch.float32
        expanded = space.expand(core)
        assert expanded.rank == min(p, q)
        assert_close(dense(expanded), dense(D).double(), 1e-5)
    assert_close(space.left.T @ space.left, torch.eye(p), 1e-6)
    assert_close(space.right @ space.right.T, torch.eye(q), 1e-6)


def test_a_dense_task_matrix_has_no_core() -> None:
    assert core_space([*pairs(5, 4, (1,)), torch.zeros(5, 4)]) is None


def test_sizes_are_those_of_the_cores() -> None:
    size = LayerSize(100, 8, (4, 8), (True, True), 3200, 0)
    small = core_size(size)
    assert (small.m, small.n, small.features, small.thin) == (12, 8, (8, 8), (False, False))
    assert core_bytes(size) > size.factor_bytes and core_operations(size) > 0
    mixed = LayerSize(100, 8, (4, 8), (True, False), 3200, 0)
    assert core_size(mixed) is mixed and core_bytes(mixed) == 0 and core_operations(mixed) == 0
