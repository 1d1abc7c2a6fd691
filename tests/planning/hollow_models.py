"""Large models that take no disk space: their files are holes, which are never read."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def hollow(folder: Path, m: int, n: int, rows: int = 8) -> Path:
    """A Llama of large matrices whose file is one hole: it takes no disk space and is never read."""
    config = {"model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": n, "num_hidden_layers": 1}
    config |= {"intermediate_size": m, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": rows}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    shapes = {"layers.0.mlp.up_proj.weight": [m, n], "embed_tokens.weight": [rows, n], "norm.weight": [n]}
    for name, shape in shapes.items():
        size = 4 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + offset)
    return folder
