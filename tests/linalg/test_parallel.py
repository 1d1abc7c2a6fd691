"""Items are computed in parallel, each by one thread, and the number of threads is left as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from linalg_cases import gaussian, orthogonal

from sftm_app.linalg.parallel import parallel_map, single_threaded
from sftm_app.linalg.svd import factorise


def test_threads_that_start_meanwhile_use_as_many_threads_as_before() -> None:
    torch.set_num_threads(2)
    try:
        both = Barrier(2)

        def look(_: int) -> tuple[int, int]:
            both.wait(60)  # until both threads of the pool are at work
            with ThreadPoolExecutor(1) as other:
                return torch.get_num_threads(), other.submit(torch.get_num_threads).result()

        assert parallel_map(look, range(2), 2) == [(1, 2)] * 2
    finally:
        torch.set_num_threads(1)


def test_two_threads_give_what_one_gives() -> None:
    matrices = [*(gaussian(96, 80, seed, torch.float32) for seed in range(3)), orthogonal(80, 1).float()]
    alone = parallel_map(factorise, matrices, 1)
    torch.set_num_threads(2)
    try:
        together = parallel_map(factorise, matrices, 2)
        assert parallel_map(lambda _: torch.get_num_threads(), range(4), 2) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            parallel_map(lambda x: 1 / x, [1, 0, 2], 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for f, g in zip(alone, together, strict=True):
        assert torch.equal(f.U, g.U) and torch.equal(f.S, g.S) and torch.equal(f.Vh, g.Vh)


def test_inside_the_block_one_thread_computes() -> None:
    torch.set_num_threads(2)
    try:
        with single_threaded(2):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
