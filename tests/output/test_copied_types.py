"""Whatever a merge does not compute with is copied from the base, byte by byte. (FAULTS A5)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import change_weights

from sftm_app import merge
from sftm_app.weights.header import FLOATS, TORCH_DTYPES, read_header

OTHERS = [code for code, dtype in TORCH_DTYPES.items() if dtype not in FLOATS]


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_every_other_type_is_copied_byte_by_byte(models: Path, tmp_path: Path, dtype: str | None) -> None:
    extra: dict[str, Any] = {}
    for code in OTHERS:
        size = 6 * TORCH_DTYPES[code].itemsize
        values = torch.arange(size, dtype=torch.uint8) % (2 if code == "BOOL" else 251)
        extra[f"extra.{code.lower()}"] = values.view(TORCH_DTYPES[code]).view(2, 3)
    file = models / "base" / "model.safetensors"
    change_weights(file, lambda tensors: tensors.update(extra))
    merge(models / "base", [models / "a"], tmp_path / "out", device="cpu", dtype=dtype)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in extra.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw(written[name]) == raw(tensor), name
    header = {info.name: info for info in read_header(tmp_path / "out" / "model.safetensors").tensors}
    assert header["extra.f4"].shape == (2, 3)


def test_torch_reads_the_types_that_we_do(tmp_path: Path) -> None:
    values = {
        code: torch.zeros(8 * dtype.itemsize, dtype=torch.uint8).view(dtype) for code, dtype in TORCH_DTYPES.items()
    }
    save_file(values, tmp_path / "x.safetensors")
    assert {code: tensor.dtype for code, tensor in load_file(tmp_path / "x.safetensors").items()} == TORCH_DTYPES
