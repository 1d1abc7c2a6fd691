"""Tiny random checkpoints in Hugging Face format, and hand-made files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

N_LABELS = {"a": 3, "b": 4, "c": 5}


def tiny_config(**changes: Any) -> ViTConfig:
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
    }
    return ViTConfig(**(settings | changes))


def save_base(folder: Path, **changes: Any) -> Path:
    """A tiny random ViT backbone in Hugging Face format."""
    torch.manual_seed(0)
    ViTModel(tiny_config(**changes), add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_task(folder: Path, base: Path, seed: int, n_labels: int, dtype: torch.dtype = torch.float32) -> Path:
    """The base with every weight changed a little, and with its own random head."""
    torch.manual_seed(seed)
    labels = {i: f"label {i} of {folder.name}" for i in range(n_labels)}
    config = ViTConfig.from_pretrained(base, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = ViTForImageClassification(config)
    model.vit.load_state_dict(ViTModel.from_pretrained(base, add_pooling_layer=False).state_dict())
    with torch.no_grad():
        for parameter in model.vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.classifier.weight.normal_()
    model.to(dtype).save_pretrained(folder)
    return folder


def change_weights(file: Path, change: Any) -> None:
    """Rewrite a safetensors file after `change(tensors)` changed its dict of tensors in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    """Set keys of a config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | values).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def header_bytes(header: Any, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any JSON value (or raw bytes) as its header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data
