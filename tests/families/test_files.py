"""Names, types, ties and vocabularies as they occur in files from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from direct_merge import arrays, direct_merge, distance
from family_builders import FAMILIES, TASKS, VOCABULARY, save_family, save_task, shaken
from safetensors.torch import load_file
from test_families import TOLERANCE, load_sound
from tiny_checkpoints import change_config, change_weights
from tokenizers import Tokenizer, models

from sftm_app.api import check, merge
from sftm_app.errors import InputError
from sftm_app.output.report import Report

Tensors = dict[str, torch.Tensor]


def merge_tasks(root: Path, **settings: Any) -> Report:
    return merge(root / "base", [root / name for name in TASKS], root / "out", device="cpu", **settings)


def rename(folder: Path, old: str, new: str) -> None:
    """Replace the first part of every name in a checkpoint."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    change_weights(folder / "model.safetensors", change)


def test_gpt2_as_on_the_hub_without_prefix_and_with_masks(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["gpt2"])
    rename(tmp_path / "base", "transformer.", "")
    mask = torch.full((1, 1, 4, 4), float("-inf")).triu(1)
    for folder in ("base", "b"):
        name = "h.0.attn.bias" if folder == "base" else "transformer.h.0.attn.bias"
        change_weights(tmp_path / folder / "model.safetensors", lambda tensors, name=name: tensors.update({name: mask}))
    report = merge_tasks(tmp_path, dtype="float16")
    roles = {record.name: record.role for record in report.tensors}
    assert roles["h.0.attn.c_attn.weight"] == "matrix"
    assert roles["wte.weight"] == "embedding"
    assert roles["h.0.attn.bias"] == "buffer"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["h.0.attn.bias"], mask)
    assert found["h.0.attn.c_attn.weight"].dtype is torch.float16
    load_sound("GPT2LMHeadModel", tmp_path / "out")


def test_bert_as_on_the_hub_with_gamma_beta_and_position_ids(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["bert masked"])

    def age(tensors: Tensors) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]

    before = arrays(tmp_path / "base")
    change_weights(tmp_path / "base" / "model.safetensors", age)
    report = merge_tasks(tmp_path)
    old = "bert.embeddings.LayerNorm.gamma"
    assert {record.name: record.role for record in report.tensors}[old] == "norm"
    new = "bert.embeddings.LayerNorm.weight"
    expected = direct_merge(new, before[new], [arrays(tmp_path / name)[new] for name in TASKS])
    assert distance(arrays(tmp_path / "out")[old], expected, before[new]) < TOLERANCE
    load_sound("BertForMaskedLM", tmp_path / "out")


def test_t5_ties_are_one_embedding_however_often_they_are_stored(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["t5"])
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")

    def store_twice(tensors: Tensors) -> None:
        tensors.update({name: tensors["shared.weight"].clone() for name in copies})

    def store_elsewhere(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("shared.weight")

    change_weights(tmp_path / "base" / "model.safetensors", store_twice)
    change_weights(tmp_path / "a" / "model.safetensors", store_twice)
    change_weights(tmp_path / "b" / "model.safetensors", store_elsewhere)
    report = merge_tasks(tmp_path)
    rules = {record.name: (record.role, record.rule) for record in report.tensors}
    assert {rules[name] for name in ("shared.weight", *copies)} == {("embedding", "average")}
    found, base = arrays(tmp_path / "out"), arrays(tmp_path / "base")["shared.weight"]
    kept = ("shared.weight", "lm_head.weight", "shared.weight")
    tables = [arrays(tmp_path / name)[key] for name, key in zip(TASKS, kept, strict=True)]
    expected = np.mean(tables, axis=0)
    for name in ("shared.weight", *copies):
        assert distance(found[name], expected, base) < TOLERANCE
    load_sound("T5ForConditionalGeneration", tmp_path / "out")
    assert not (tmp_path / "out" / "heads").exists()


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "bert masked"])
def test_a_task_that_stores_its_tied_head_too(family: str, tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES[family])
    table, head = {
        "gpt2": ("transformer.wte.weight", "lm_head.weight"),
        "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
        "bert masked": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    }[family]
    file = tmp_path / "a" / "model.safetensors"
    change_weights(file, lambda tensors: tensors.update({head: tensors[table].clone()}))
    merge_tasks(tmp_path)
    assert head not in arrays(tmp_path / "out")
    assert not (tmp_path / "out" / "heads").exists()


@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_tied_tensors_that_differ_are_merged_separately(family: str, tmp_path: Path) -> None:
    """As in T5 1.1: its config ties them, and transformers loads them separately."""
    save_family(tmp_path, FAMILIES[family])
    table = "shared.weight" if family == "t5" else "model.embed_tokens.weight"
    for seed, folder in enumerate(("base", *TASKS)):
        untied = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(seed))
        change_weights(
            tmp_path / folder / "model.safetensors",
            lambda tensors, untied=untied: tensors.update({"lm_head.weight": untied}),
        )
    notes = [note for note in check(tmp_path / "base", [tmp_path / "a"]).notes if "differ in its files" in note]
    said = f"its config ties 'lm_head.weight' to '{table}', but they differ in its files, so each is merged separately"
    assert [note.partition(" (transformers")[0] for note in notes] == [f"The base: {said}", f"a: {said}"]
    report = merge_tasks(tmp_path)
    roles = {record.name: record.role for record in report.tensors}
    assert (roles[table], roles["lm_head.weight"]) == ("embedding", "matrix")
    base, found = arrays(tmp_path / "base"), arrays(tmp_path / "out")
    for name in (table, "lm_head.weight"):
        expected = direct_merge(name, base[name], [arrays(tmp_path / task)[name] for task in TASKS])
        assert distance(found[name], expected, base[name]) < TOLERANCE
    load_sound(FAMILIES[family].base, tmp_path / "out")

    change_weights(tmp_path / "b" / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    (problem,) = check(tmp_path / "base", [tmp_path / "b"]).problems
    assert problem.startswith("b: 'lm_head.weight' is tied to the embedding in the task and separate in the base")


@pytest.mark.parametrize("base_ties", [True, False])
def test_ties_that_differ_between_base_and_task_are_refused(base_ties: bool, tmp_path: Path) -> None:
    save_family(tmp_path / "tied", FAMILIES["qwen2"])
    save_family(tmp_path / "separate", FAMILIES["qwen2"], tie_word_embeddings=False)
    base, task = (tmp_path / ("tied" if tied else "separate") for tied in (base_ties, not base_ties))
    (problem,) = check(base / "base", [task / "a"]).problems
    where = "in the base and separate in the task" if base_ties else "in the task and separate in the base"
    assert problem.startswith(f"a: 'lm_head.weight' is tied to the embedding {where} (`tie_word_embeddings`)")


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "llama", "bert"])
def test_vocabularies_that_differ_are_one_sentence(family: str, tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES[family])
    for name, size in (("a", 3), ("b", 3), ("c", 5)):
        model = getattr(hf, FAMILIES[family].task).from_pretrained(tmp_path / name)
        model.resize_token_embeddings(VOCABULARY + size, mean_resizing=False)
        model.save_pretrained(tmp_path / name)
    assert check(tmp_path / "base", [tmp_path / name for name in TASKS]).problems == (
        "a, b and c have rows after the base's 19, and no tokenizer that says what they stand for. Put their tokenizer "
        "files next to the weights, or keep the rows of one (`tokenizer: task a`) or of none (`tokenizer: base`).",
    )


def test_types_may_be_mixed(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["llama"])
    types = {"base": torch.bfloat16, "a": torch.float16, "b": torch.float32, "c": torch.float8_e4m3fn}

    def cast(tensors: Tensors, dtype: torch.dtype) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    change_config(tmp_path / "base", dtype="bfloat16")
    for folder, dtype in types.items():
        change_weights(tmp_path / folder / "model.safetensors", lambda tensors, dtype=dtype: cast(tensors, dtype))
    sound, base = {}, arrays(tmp_path / "base")
    for name, ours in base.items():
        sound[name] = direct_merge(name, ours, [arrays(tmp_path / task)[name] for task in TASKS])
    steps = {"bfloat16": 2**-8, "float32": 2e-4, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}
    for asked, (dtype, step) in {
        None: ("bfloat16", 2**-8),
        **{name: (name, step) for name, step in steps.items()},
    }.items():
        out = tmp_path / f"out {asked}"
        merge(tmp_path / "base", [tmp_path / task for task in TASKS], out, device="cpu", dtype=asked)
        found = load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
        for name, expected in sound.items():
            # Half a step of the dtype for each value, and its smallest step for tiny values.
            off = abs(found[name].double().numpy() - expected)
            assert (off <= step * abs(expected) + 2e-3 * (step > 1e-3) + 1e-4).all(), (asked, name)
        model = load_sound("LlamaForCausalLM", out)
        assert model.dtype is (torch.bfloat16 if dtype.startswith("float8") else getattr(torch, dtype))


def test_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["llama"])
    change_config(tmp_path / "a", quantization_config={"quant_method": "gptq", "bits": 4})
    (problem,) = check(tmp_path / "base", [tmp_path / "a"]).problems
    assert problem.startswith("a: config.json has a `quantization_config`: the weights are quantised")
    with pytest.raises(InputError, match=r"/a: config\.json has a `quantization_config`"):
        check(tmp_path / "a", [tmp_path / "b"])


def test_other_files_of_the_base_are_copied(tmp_path: Path) -> None:
    save_family(tmp_path, FAMILIES["bert"])
    kept = [
        "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "vocab.txt", "vocab-src.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model",
        "chat_template.jinja", "additional_chat_templates/tools.jinja", "modules.json", "sentence_bert_config.json",
        "config_sentence_transformers.json", "1_Pooling/config.json",
    ]  # fmt: skip

    read = {
        "modules.json": "[]",
        "added_tokens.json": "{}",
        "tokenizer.json": Tokenizer(models.WordLevel({"a": 0}, "a")).to_str(),
    }

    def content_of(name: str) -> str:
        return read.get(name, json.dumps({"of": name}))

    left = ["modeling.py", "1_Pooling/code.py", "pytorch_model.bin", "optimizer.pt", "notes.md", "training/config.json"]
    for name in kept + left:
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(content_of(name))
    merge_tasks(tmp_path)
    for name in kept:
        assert (tmp_path / "out" / name).read_text() == content_of(name)
    assert not any((tmp_path / "out" / name).exists() for name in left)


def test_language_model_heads_that_the_base_lacks_are_kept(tmp_path: Path) -> None:
    """An untied head is the task's own; a tied head is the embedding, which is merged."""
    for family, plain, heads in (("llama", "LlamaModel", {"lm_head.weight"}), ("gpt2", "GPT2Model", set())):
        root = save_family(tmp_path / family, FAMILIES[family])
        plain_model = getattr(hf, plain).from_pretrained(root / "base")
        shutil.rmtree(root / "base")
        plain_model.save_pretrained(root / "base")
        found = check(root / "base", [root / name for name in TASKS])
        assert found.problems == ()
        assert [set(match.heads) for match in found.matches] == [heads] * 3


def test_a_t5_without_head_takes_fine_tunes_with_one(tmp_path: Path) -> None:
    root = save_family(tmp_path, FAMILIES["t5 untied"])
    shaken(hf.T5Model.from_pretrained(root / "base"), 9, 0.0).save_pretrained(root / "plain")
    save_task(root / "encoder", root / "base", "T5EncoderModel", 4)
    found = check(root / "plain", [root / "a", root / "encoder"])
    assert found.problems == ()
    assert [match.heads for match in found.matches] == [("lm_head.weight",), ()]
    assert not any(name.startswith("decoder") for name in found.matches[1].names)
