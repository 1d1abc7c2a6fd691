"""Sharded output compared with what `save_pretrained` writes: file names, what is in each, index and metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from closeness import assert_close

from sftm_app.api import merge
from sftm_app.weights.header import read_header
from sftm_app.weights.writer import OutputTensor, shard

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 2, "vocab_size": 40}),
    "tied llama": ("LlamaForCausalLM", {"num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": True}),
    "vit": ("ViTForImageClassification", {"image_size": 8, "patch_size": 4, "num_hidden_layers": 11}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 16}),
    "bert": ("BertForSequenceClassification", {"vocab_size": 40, "max_position_embeddings": 16}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2}),
    "mixtral": ("MixtralForCausalLM", {"num_key_value_heads": 2, "vocab_size": 40, "num_local_experts": 3}),
}
COMMON = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_pair(folder: Path, kind: str, max_shard_size: str) -> tuple[Path, Path]:
    """A tiny random model and a fine-tune of it, saved by transformers."""
    class_name, changes = MODELS[kind]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**(COMMON | changes))
    torch.manual_seed(0)
    model = model_class(config)
    model.save_pretrained(folder / "base", max_shard_size=max_shard_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "task", max_shard_size=max_shard_size)
    return folder / "base", folder / "task"


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "mixtral"])
@pytest.mark.parametrize("max_shard_size", ["3KB", "20KB", "1GB"])
def test_shards_and_index_are_those_that_transformers_writes(tmp_path: Path, kind: str, max_shard_size: str) -> None:
    base, task = save_pair(tmp_path, kind, max_shard_size)
    merge(base, [task], output=tmp_path / "out", method="average", max_shard_size=max_shard_size, device="cpu")
    theirs, ours = (sorted(path.glob("model*")) for path in (base, tmp_path / "out"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert len(ours) == 1 if max_shard_size == "1GB" else len(ours) > 2
    for path in theirs:
        if path.suffix == ".json":
            assert (tmp_path / "out" / path.name).read_text() == path.read_text()
            assert set(json.loads(path.read_text())["metadata"]) == {"total_size", "total_parameters"}
        else:
            written, expected = read_header(tmp_path / "out" / path.name), read_header(path)
            assert written.metadata == expected.metadata == {"format": "pt"}
            assert [(t.name, t.dtype, t.shape) for t in written.tensors] == [
                (t.name, t.dtype, t.shape) for t in expected.tensors
            ]


def test_experts_are_sharded_by_their_own_size(tmp_path: Path) -> None:
    # transformers keeps what shares one stack in memory in one file, whatever the limit, and counts it once.
    base, task = save_pair(tmp_path, "mixtral", "3KB")
    merge(base, [task], output=tmp_path / "out", method="average", max_shard_size="3KB", device="cpu")
    shards = [read_header(path).tensors for path in (tmp_path / "out").glob("*.safetensors")]
    assert all(len(tensors) == 1 or sum(t.n_bytes for t in tensors) <= 3000 for tensors in shards)
    model, info = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    merged, expected = model.state_dict(), transformers.MixtralForCausalLM.from_pretrained(task).state_dict()
    for name in expected:
        assert_close(merged[name], expected[name], 1e-6, what=name)


def test_a_tensor_beyond_the_limit_gets_its_own_shard_and_the_one_being_filled_goes_on() -> None:
    a, big, b, c = (
        OutputTensor(name, torch.float32, (size,)) for name, size in zip("axbc", (4, 30, 4, 4), strict=True)
    )
    assert shard([a, big, b, c], 32) == [[big], [a, b], [c]]
    assert shard([big], 32) == [[big]]
    assert shard([], 32) == [[]]
