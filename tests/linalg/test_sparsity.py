"""Selection over many tensors, against sorting them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sftm_app.linalg.sparsity import keep_largest, smallest_kept


def sorted_out(tensors: Sequence[Tensor], density: float) -> float:
    together = np.sort(np.abs(np.concatenate([tensor.numpy().ravel() for tensor in tensors])))
    return float(together[together.size - max(1, int(density * together.size))])


def tensors(kind: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (300,), (1,), (), (4, 3, 2, 2)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return {
        "random": drawn,
        "many scales": [tensor * 10.0 ** (6 * index - 18) for index, tensor in enumerate(drawn)],
        "close": [1 + 1e-6 * tensor for tensor in drawn],
        "subnormal": [tensor * 1e-40 for tensor in drawn],
        "huge": [tensor.clamp(-1, 1) * 3e38 for tensor in drawn],
        "equal": [torch.full(shape, -0.25) for shape in shapes],
        "mostly zero": [tensor * (tensor > 1.5) for tensor in drawn],
        "zero": [torch.zeros(shape) for shape in shapes],
    }[kind]


@pytest.mark.parametrize("density", [0.001, 0.01, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize(
    "kind", ["random", "many scales", "close", "subnormal", "huge", "equal", "mostly zero", "zero"]
)
def test_the_smallest_kept_magnitude(kind: str, density: float) -> None:
    given = tensors(kind)
    assert smallest_kept(lambda: iter(given), density) == sorted_out(given, density)


def test_one_tensor_is_cut_as_by_itself() -> None:
    D = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))
    for density in (0.01, 0.2, 0.77):
        smallest = smallest_kept(lambda: [D], density)
        assert torch.equal(keep_largest(D, density), torch.where(D.abs() >= smallest, D, 0.0))


def test_no_entries() -> None:
    assert smallest_kept(list, 0.2) == 0.0
    assert smallest_kept(lambda: [torch.zeros(0, 3)], 0.2) == 0.0
