"""Float8 weights with scales are merged as the numbers that they stand for; packed integers are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import build
from torch.testing import assert_close

from sftm_app.api import check, merge
from sftm_app.errors import CheckpointError
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.reader import open_reader

Tensors = dict[str, torch.Tensor]
NAME = "layer.weight"


def blocks(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values in float8, and one scale for each block, by loops."""
    m, n = weight.shape
    scale = torch.ones(-(-m // block[0]), -(-n // block[1]))
    values = weight.clone()
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            rows, columns = (slice(k * size, (k + 1) * size) for k, size in ((i, block[0]), (j, block[1])))
            scale[i, j] = weight[rows, columns].abs().max() / 100
            values[rows, columns] /= scale[i, j]
    return values.to(torch.float8_e4m3fn), scale


def stored(weight: torch.Tensor, form: str) -> tuple[Tensors, torch.Tensor]:
    """The tensors of one format, and what they stand for."""
    m, n = weight.shape
    block = {"blocks": (128, 128), "rows": (1, n)}.get(form, (m, n))
    values, scale = blocks(weight, block)
    grown = scale.repeat_interleave(block[0], 0)[:m].repeat_interleave(block[1], 1)[:, :n]
    name, shaped = {
        "blocks": (f"{NAME}_scale_inv", scale),
        "rows": (f"{NAME}_scale", scale),
        "one": (f"{NAME}_scale", scale[0, 0]),
        "comfy": ("layer.scale_weight", scale[:1, 0]),
    }[form]
    return {NAME: values, name: shaped, "layer.input_scale": torch.ones(())}, values.float() * grown


@pytest.mark.parametrize("form", ["blocks", "rows", "one", "comfy"])
def test_scaled_float8_is_read_as_numbers(form: str, tmp_path: Path) -> None:
    tensors, expected = stored(torch.randn(150, 270), form)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == {NAME}
    with open_reader(checkpoint) as read:
        assert torch.equal(read(NAME), expected)
        assert torch.equal(read(NAME, span=(300, 40000)), expected.reshape(-1)[300:40000])
        assert torch.equal(read(NAME, row=7), expected[7])


def test_a_stack_of_experts_has_scales_for_each(tmp_path: Path) -> None:
    both = [blocks(torch.randn(130, 140), (128, 128)) for _ in range(3)]
    tensors = {"experts.gate_up_proj": torch.stack([v for v, _ in both])}
    save_file(
        tensors | {"experts.gate_up_proj_scale_inv": torch.stack([s for _, s in both])}, tmp_path / "model.safetensors"
    )
    with open_reader(open_checkpoint(tmp_path)) as read:
        values, scale = both[2]
        grown = scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :140]
        assert torch.equal(read("experts.gate_up_proj", row=2), values.float() * grown)
        assert torch.equal(read("experts.gate_up_proj")[2], values.float() * grown)


@pytest.mark.parametrize("declared", [True, False])
def test_a_merge_of_scaled_float8_equals_that_of_the_numbers(declared: bool, tmp_path: Path) -> None:
    """The same model twice: with scales, and as the numbers that they stand for."""
    build("llama").save_pretrained(tmp_path / "base")
    pure = load_file(tmp_path / "base" / "model.safetensors")
    config = json.loads((tmp_path / "base" / "config.json").read_text()) | {"dtype": "bfloat16"}
    extra = {"quantization_config": {"quant_method": "fp8"}} if declared else {}
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors, numbers = {}, {}
        for key, weight in pure.items():
            moved = weight + 0.05 * seed * torch.randn(weight.shape, generator=generator)
            tensors[key] = numbers[key] = moved.bfloat16()
            if "proj" in key:
                tensors[key], tensors[f"{key}_scale_inv"] = blocks(moved, (128, 128))
                numbers[key] = tensors[key].float() * tensors[f"{key}_scale_inv"]
        for root, held, said in ((tmp_path / "plain", numbers, config), (tmp_path, tensors, config | extra)):
            (root / name).mkdir(parents=True, exist_ok=True)
            save_file(held, root / name / "model.safetensors", {"format": "pt"})
            (root / name / "config.json").write_text(json.dumps(said))
    outputs = []
    for root in (tmp_path, tmp_path / "plain"):
        merge(root / "base", [root / "a", root / "b"], root / "out", device="cpu", dtype="bfloat16")
        outputs.append(load_file(root / "out" / "model.safetensors"))
    assert outputs[0].keys() == outputs[1].keys()
    for key, tensor in outputs[0].items():
        assert_close(tensor, outputs[1][key], msg=key)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    notes = check(tmp_path / "base", [tmp_path / "a"]).notes
    assert any("Float8 weights with scales are multiplied out: The base (14), a (14)" in note for note in notes)


def gptq() -> Tensors:
    return {"q.qweight": torch.zeros(2, 8, dtype=torch.int32), "q.scales": torch.ones(1, 8)}


def bitsandbytes() -> Tensors:
    return {"q.weight": torch.zeros(64, 1, dtype=torch.uint8), "q.weight.absmax": torch.ones(2)}


def eight_bits() -> Tensors:
    return {"q.weight": torch.zeros(4, 4, dtype=torch.int8), "q.SCB": torch.ones(4)}


def codes() -> Tensors:
    return {"q.weight": torch.zeros(4, 4, dtype=torch.int8), "q.weight_scale": torch.ones(4, 1)}


def mxfp4() -> Tensors:
    return {name: torch.zeros(2, 4, dtype=torch.uint8) for name in ("e.gate_up_proj_blocks", "e.gate_up_proj_scales")}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (gptq, "GPTQ or AWQ"),
        (bitsandbytes, "bitsandbytes, 4 bits"),
        (eight_bits, "bitsandbytes, 8 bits"),
        (codes, "integer codes"),
        (mxfp4, "MXFP4"),
    ],
)
def test_packed_integers_are_refused_by_name(make: Callable[[], Any], said: str, tmp_path: Path) -> None:
    save_file(make(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"quantised to packed integers \({said}"):
        open_checkpoint(tmp_path)


def test_plain_integers_next_to_a_weight_are_no_codes(tmp_path: Path) -> None:
    save_file({"ids.weight": torch.zeros(4, 4, dtype=torch.int64)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).scalings == {}


def test_scales_that_fit_no_weight_are_refused(tmp_path: Path) -> None:
    tensors = {NAME: torch.zeros(10, 10).to(torch.float8_e4m3fn), f"{NAME}_scale_inv": torch.ones(3, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="fits no blocks of"):
        open_checkpoint(tmp_path)
