"""LoRA adapters as tasks, checked against PEFT itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from closeness import assert_close
from tiny_adapters import build, inputs_of, load_adapter, logits, save_adapter

from sftm_app.api import check, merge
from sftm_app.engine import features
from sftm_app.weights.checkpoint import open_checkpoint
from sftm_app.weights.reader import open_reader

# name -> kind of model, settings of the base, settings of the adapter
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {"task_type": "CAUSAL_LM"}),
    "llama, rank and alpha by module": (
        "llama",
        {},
        {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 2}, "alpha_pattern": {"layers.0.*q_proj": 11}},
    ),
    "llama, rank-stabilised": ("llama", {}, {"use_rslora": True, "rank_pattern": {"q_proj": 5}}),
    "llama, norms saved whole": ("llama", {}, {"modules_to_save": ["input_layernorm", "v_proj"]}),
    "llama, untied embeddings": ("llama", {}, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "v_proj"]}),
    "gpt2": ("gpt2", {}, {"fan_in_fan_out": True}),
    "gpt2, square": ("gpt2", {}, {"target_modules": ["attn.c_proj", "c_attn"]}),
    "gpt2, embeddings": ("gpt2", {}, {"target_modules": ["wte", "wpe", "mlp.c_proj"], "modules_to_save": ["ln_f"]}),
    "bert": ("bert", {}, {"task_type": "SEQ_CLS", "bias": "all"}),
    "bert, trained biases": ("bert", {}, {"task_type": "SEQ_CLS", "bias": "lora_only"}),
    "vit": ("vit", {}, {"modules_to_save": ["classifier"]}),
    "t5": ("t5", {}, {"task_type": "SEQ_2_SEQ_LM"}),
    "t5, shared table": ("t5", {}, {"target_modules": ["shared", "k"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_merging_one_adapter_is_what_peft_makes_of_it(name: str, tmp_path: Path) -> None:
    kind, base, settings = CASES[name]
    model = build(kind, **base)
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "one", kind, 1, base, **settings)
    found = check(tmp_path / "base", [adapter])
    assert not found.problems
    assert found.matches[0].pairs
    for method in ("sftm", "average"):
        merge(tmp_path / "base", [adapter], tmp_path / method, method, "cpu")
        merged = type(model).from_pretrained(tmp_path / method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unloaded = load_adapter(adapter, kind, **base).merge_and_unload()
        theirs = unloaded.state_dict()
        for key, tensor in merged.state_dict().items():
            assert_close(tensor, theirs[key], 5e-6, what=key)
        assert (logits(merged, kind) - logits(model, kind)).abs().max() > 1e-3
        assert_close(logits(merged, kind), logits(unloaded, kind))


@pytest.mark.parametrize(("kind", "norm"), [("llama", "norm"), ("gpt2", "ln_f"), ("vit", "layernorm")])
@pytest.mark.parametrize("method", ["sftm", "average"])
def test_adapters_and_their_full_models_merge_to_the_same(kind: str, norm: str, method: str, tmp_path: Path) -> None:
    """Also when adapters and full checkpoints are mixed, and when tasks touch different modules."""
    build(kind).save_pretrained(tmp_path / "base")
    settings: list[dict[str, Any]] = [{"modules_to_save": [norm]}, {"use_rslora": True}, {"layers_to_transform": [0]}]
    variant = {"variant": "mapping"} if method == "sftm" else {}
    adapters, full = [], []
    for seed, setting in enumerate(settings, start=1):
        adapters.append(save_adapter(tmp_path / f"lora{seed}", kind, seed, **setting))
        full.append(tmp_path / f"full{seed}")
        load_adapter(adapters[-1], kind).merge_and_unload().save_pretrained(full[-1])
    wholly = {}
    for label, tasks in {"adapters": adapters, "mixed": [*adapters[:2], full[2]], "full": full}.items():
        # A full checkpoint holds every tensor, an adapter what it touches: the rest counts as unchanged.
        merge(tmp_path / "base", tasks, tmp_path / label, method, "cpu", **variant)
        opened = open_checkpoint(tmp_path / label)
        with open_reader(opened) as read:
            wholly[label] = {name: read(name) for name in opened.tensors}
    for label in ("adapters", "mixed"):
        for name, tensor in wholly["full"].items():
            assert_close(wholly[label][name], tensor, what=name)


def test_the_task_matrix_is_never_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sftm_app.linalg.low_rank import LowRank

    build("llama").save_pretrained(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"{seed}", "llama", seed) for seed in (1, 2)]
    seen: list[type] = []
    factorise = features.factorise
    monkeypatch.setattr(features, "factorise", lambda D, rank: (seen.append(type(D)), factorise(D, rank))[1])
    merge(tmp_path / "base", adapters, tmp_path / "merged", "sftm", "cpu")
    assert len(seen) >= 8
    assert set(seen) == {LowRank}


def test_a_full_model_merged_from_adapters_runs_like_the_adapter(tmp_path: Path) -> None:
    """Names of old files, as transformers 4 wrote them in memory, fit too."""
    from safetensors.torch import load_file, save_file

    build("vit").save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "one", "vit", 1, target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    new = load_file(file)
    old = {
        name.replace("vit.layers", "vit.encoder.layer")
        .replace("attention.q_proj", "attention.attention.query")
        .replace(".weight", ".default.weight"): tensor
        for name, tensor in new.items()
    }
    assert set(old).isdisjoint(new)
    merge(tmp_path / "base", [adapter], tmp_path / "by new names", "sftm", "cpu")
    save_file(old, file)
    merge(tmp_path / "base", [adapter], tmp_path / "by old names", "sftm", "cpu")
    left, right = (open_checkpoint(tmp_path / name) for name in ("by new names", "by old names"))
    assert (left.path / "model.safetensors").read_bytes() == (right.path / "model.safetensors").read_bytes()
    assert inputs_of("vit")


def test_a_base_without_the_head_keeps_the_adapters_heads_apart(tmp_path: Path) -> None:
    build("bert").bert.save_pretrained(tmp_path / "base")
    adapters = [save_adapter(tmp_path / f"{seed}", "bert", seed, task_type="SEQ_CLS") for seed in (1, 2)]
    found = check(tmp_path / "base", adapters)
    assert not found.problems
    assert [sorted(match.heads) for match in found.matches] == [
        ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]
    ] * 2
    assert "encoder.layer.0.attention.self.query.weight" in found.matches[0].pairs
    merge(tmp_path / "base", adapters, tmp_path / "merged", "sftm", "cpu")
    assert sorted(path.name for path in (tmp_path / "merged" / "heads").glob("*.safetensors")) == [
        "1.safetensors",
        "2.safetensors",
    ]
