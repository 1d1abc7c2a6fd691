"""Tables in another order of rows are read as if they were stored so: whole, by rows, and by spans of elements."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sftm_app.weights.checkpoint import Checkpoint, open_checkpoint
from sftm_app.weights.reader import open_reader
from sftm_app.weights.row_maps import Blend, RowMap, read_mapped

WIDTH = 3


def table(n: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def opened(path: Path, **tensors: Tensor) -> Checkpoint:
    save_file(tensors, path)
    return open_checkpoint(path)


def rows(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return opened(tmp_path / "base.safetensors", t=table(5, 0), bias=table(5, 9)[:, 0].contiguous())


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=9), st.integers(0, 26), st.integers(0, 26))
def test_any_order_read_whole_and_in_spans(order: list[int], start: int, stop: int) -> None:
    stored = table(5, 0)
    stop = min(max(start, stop), WIDTH * len(order))
    start = min(start, stop)
    expected = torch.stack([stored[row] if row >= 0 else torch.zeros(WIDTH) for row in order])
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = opened(Path(folder) / "base.safetensors", t=stored)
        mapped = checkpoint.with_rows({"t": RowMap(checkpoint.stored("t"), rows(*order))}, {})
        assert mapped.tensors["t"].shape == (len(order), WIDTH)
        with open_reader(mapped) as read:
            assert torch.equal(read("t"), expected)
            assert torch.equal(read("t", row=len(order) - 1), expected[-1])
            assert torch.equal(read("t", span=(start, stop)), expected.reshape(-1)[start:stop])


def test_rows_that_a_task_lacks_are_the_bases(tmp_path: Path, base: Checkpoint) -> None:
    half = table(4, 1, torch.bfloat16)
    task = opened(tmp_path / "task.safetensors", t=half)
    of_base = RowMap(base.stored("t"), rows(4, 0, 1))
    mapped = task.with_rows({"t": RowMap(task.stored("t"), rows(-1, 3, -1), of_base)}, {})
    with open_reader(mapped) as read:
        found = read("t")
    # Neither side is rounded, so that the task changes nothing in rows that it lacks.
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.stack([table(5, 0)[4], half[3].float(), table(5, 0)[1]]))


def test_vectors_and_columns(base: Checkpoint) -> None:
    bias = base.with_rows({"bias": RowMap(base.stored("bias"), rows(1, -1, 0))}, {})
    wide = base.with_rows({"t": RowMap(base.stored("t"), rows(2, -1, 0, 1), None, axis=1)}, {})
    with open_reader(bias) as read, open_reader(wide) as read_wide:
        values = table(5, 9)[:, 0]
        assert torch.equal(read("bias"), torch.stack([values[1], torch.zeros(()), values[0]]))
        stored = table(5, 0)
        expected = torch.stack([stored[:, 2], torch.zeros(5), stored[:, 0], stored[:, 1]], dim=1)
        assert torch.equal(read_wide("t"), expected)
        assert torch.equal(read_wide("t", span=(3, 9)), expected.reshape(-1)[3:9])


def blended(tmp_path: Path, base: Checkpoint, *tables: Tensor, weights: tuple[float, ...], spare: int = -1) -> Tensor:
    """The row that the base lacks and that is the last of every table."""
    tasks = [opened(tmp_path / f"{i}.safetensors", t=values) for i, values in enumerate(tables)]
    last = tuple(rows(len(values) - 1) for values in tables)
    blend = Blend(tuple(task.stored("t") for task in tasks), last, weights, base.stored("t"), rows(spare))

    def read(stored: object, start: int, stop: int) -> Tensor:
        found = next(c for c in (base, *tasks) if c.stored("t") == stored)
        with open_reader(found) as reader:
            return reader("t")[start:stop]

    return read_mapped(RowMap(base.stored("t"), rows(-1), blend), read)[0]


def test_new_rows_are_the_weighted_mean_of_the_trained_ones(tmp_path: Path, base: Checkpoint) -> None:
    a, b, c = table(6, 1), table(6, 2), table(6, 3)
    expected = (a[5] + 3 * b[5]) / 4
    torch.testing.assert_close(blended(tmp_path, base, a, b, weights=(1.0, 3.0)), expected)
    for untrained in (torch.zeros(WIDTH), table(5, 0).mean(0).bfloat16().float(), table(5, 0)[2]):
        c[5] = untrained
        found = blended(tmp_path, base, a, b, c, weights=(1.0, 3.0, 9.0), spare=2)
        torch.testing.assert_close(found, expected)
    # Where nobody trained it, it is as it is; a single task's row is taken whatever it holds.
    torch.testing.assert_close(blended(tmp_path, base, c, c, weights=(1.0, 1.0), spare=2), c[5])
    torch.testing.assert_close(blended(tmp_path, base, c, weights=(2.0,), spare=2), c[5])


def test_rows_that_nobody_has_are_the_bases_padding_or_its_mean(tmp_path: Path, base: Checkpoint) -> None:
    assert torch.equal(blended(tmp_path, base, weights=(), spare=4), table(5, 0)[4])
    torch.testing.assert_close(blended(tmp_path, base, weights=()), table(5, 0).mean(0))


def test_maps_are_told_apart(base: Checkpoint) -> None:
    stored = base.stored("t")
    maps = [RowMap(stored, rows(0, 1)), RowMap(stored, rows(1, 0)), RowMap(stored, rows(0, 1), axis=1)]
    maps += [RowMap(stored, rows(0, 1), other) for other in maps]
    assert len({one.digest for one in maps}) == len(maps)
    assert maps[0].digest == RowMap(base.stored("t"), rows(0, 1)).digest
