"""Adapters that cannot be merged are refused, with all problems at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import build, save_adapter

from sftm_app.api import check, merge
from sftm_app.architecture.adapter_names import parse_names
from sftm_app.errors import CheckpointError, CompatibilityError, InputError, NumericalError
from sftm_app.weights.adapter_config import AdapterConfig, parse_adapter_config
from sftm_app.weights.checkpoint import open_checkpoint

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    build("llama").save_pretrained(root / "base")
    save_adapter(root / "one", "llama", 1)
    save_adapter(root / "two", "llama", 2)
    return root


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models"))


def configure(folder: Path, **values: Any) -> None:
    """Set keys of adapter_config.json. NaN is written as Python's JSON does."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def problems(models: Path) -> str:
    return "\n".join(check(models / "base", [models / "one", models / "two"]).problems)


def test_an_adapter_is_opened_by_its_headers(models: Path) -> None:
    opened = open_checkpoint(models / "one")
    assert opened.adapter is not None
    assert (opened.adapter.r, opened.adapter.alpha, opened.adapter.problems) == (3, 5.0, ())
    assert (opened.model_type, opened.architecture, opened.id2label) == ("lora", "LoRA adapter, r 3", {})
    assert opened.n_parameters == sum(
        tensor.numel() for tensor in load_file(models / "one/adapter_model.safetensors").values()
    )
    assert open_checkpoint(models / "one" / "adapter_model.safetensors").path == opened.path


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "r = 0": ({"r": 0}, "r is 0; it should be a whole number from 1 up"),
    "r true": ({"r": True}, "r is True; it should be a whole number"),
    "r too large": ({"r": 4}, "is 3, adapter_config.json says 4"),
    "r absent": ({"r": None}, "r is None"),
    "NaN alpha": ({"lora_alpha": float("nan")}, "lora_alpha is nan; it should be a finite number"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "huge alpha": ({"lora_alpha": 10**400}, "lora_alpha is 1"),
    "alpha in words": ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    "rank pattern, zero": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern, entry 'q_proj', is 0"),
    "rank pattern, list": ({"rank_pattern": [3]}, "should be a table of module paths"),
    "rank pattern, another rank": ({"rank_pattern": {"q_proj": 2}}, "is 3, adapter_config.json says 2"),
    "alpha pattern, NaN": ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern, entry 'q_proj', is nan"),
    "pattern, broken": ({"alpha_pattern": {"q_(": 1}}, "the pattern 'q_(' is not a regular expression"),
    "pattern, looking ahead": ({"alpha_pattern": {"(?=q)q": 1}}, "holds '?=q)q', which is not understood in patterns"),
    "rslora as a number": ({"use_rslora": 1}, "use_rslora should be true or false, not 1"),
    "fan_in_fan_out as a number": ({"fan_in_fan_out": 0}, "fan_in_fan_out should be true or false, not 0"),
    "r of 400 digits": ({"r": 10**400}, "it should be a whole number from 1 up"),
    "rslora in words": ({"use_rslora": "yes"}, "use_rslora should be true or false"),
    "DoRA": ({"use_dora": True}, "DoRA (use_dora)"),
    "bias of factors": ({"lora_bias": True}, "lora_bias"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
    "OLoRA": ({"init_lora_weights": "olora"}, "changed before training"),
    "CorDA": ({"init_lora_weights": "corda"}, "changed before training"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "changed before training"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "changed before training"),
    "layers twice": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "single tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "bare parameters": ({"target_parameters": "experts.gate_up_proj"}, "target_parameters"),
    "Megatron": ({"megatron_config": {"x": 1}}, "megatron_config"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "QALoRA": ({"use_qalora": True}, "use_qalora"),
    "KaSA": ({"kasa_config": {"beta": 1}}, "kasa_config"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "of tomorrow": ({"use_quantum": True}, "has the unknown setting 'use_quantum' (True)"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bad_settings_are_refused(models: Path, name: str) -> None:
    values, said = CONFIGS[name]
    configure(models / "one", **values)
    found = check(models / "base", [models / "one", models / "two"])
    assert found.problems
    assert all(problem.startswith("one: ") for problem in found.problems)
    assert said in "\n".join(found.problems)
    with pytest.raises(CompatibilityError):
        merge(models / "base", [models / "one"], models / "out")
    assert not (models / "out").exists()


def test_harmless_settings_are_accepted(models: Path) -> None:
    for start in (True, False, "gaussian", "eva", "orthogonal", None):
        configure(models / "one", init_lora_weights=start, lora_dropout=0.1, revision="main", auto_mapping={"a": "b"})
        assert problems(models) == ""
    assert parse_adapter_config({"r": 1, "lora_alpha": 0}).problems == ()


@pytest.mark.parametrize("kind", ["ADALORA", "IA3", "LOHA", "PROMPT_TUNING", "", None, 3])
def test_other_kinds_of_adapters_are_refused(models: Path, kind: Any) -> None:
    configure(models / "one", peft_type=kind)
    with pytest.raises(CheckpointError, match="only LoRA adapters"):
        open_checkpoint(models / "one")


def half_missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{Q}.lora_A.weight"]


def ranks_disagree(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(2, 16)


def no_rank(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"{Q}.lora_A.weight": torch.zeros(0, 16), f"{Q}.lora_B.weight": torch.zeros(16, 0)}


def unknown_target(tensors: dict[str, torch.Tensor]) -> None:
    for half in "AB":
        tensors[f"{Q.replace('.0.', '.7.')}.lora_{half}.weight"] = tensors[f"{Q}.lora_{half}.weight"].clone()


def another_width(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(3, 20)


def magnitude(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_magnitude_vector"] = torch.ones(16)


def bias_of_b(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_B.bias"] = torch.ones(16)


def tokens(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = torch.ones(1, 16)


def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
    tensors["unet.q.lora_A.weight"] = torch.ones(3, 16)


def two_in_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.second.weight"] = torch.zeros(3, 16)


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(3, 16, dtype=torch.int8)


def flat(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(48)


def wider_table(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(33, 17)


def another_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.9.input_layernorm.weight"] = torch.zeros(16)


FILES: list[tuple[Callable[[dict[str, torch.Tensor]], None], str]] = [
    (half_missing, "half of a pair is missing at model.layers.0.self_attn.q_proj (no A)"),
    (ranks_disagree, "A [2, 16] and B [16, 3] at model.layers.0.self_attn.q_proj do not fit together"),
    (no_rank, "the rank at model.layers.0.self_attn.q_proj is 0, adapter_config.json says 3"),
    (unknown_target, "changes 1 modules that the base lacks: model.layers.7.self_attn.q_proj"),
    (
        another_width,
        "change a weight of shape [16, 20], in the base 'model.layers.0.self_attn.q_proj.weight' is [16, 16]",
    ),
    (magnitude, f"not part of plain LoRA as PEFT saves it: {Q}.lora_magnitude_vector"),
    (bias_of_b, f"not part of plain LoRA as PEFT saves it: {Q}.lora_B.bias"),
    (tokens, "token_adapter.trainable_tokens_delta"),
    (without_prefix, "unet.q.lora_A.weight"),
    (two_in_one, "holds 1 tensors twice"),
    (integers, "are not floating-point numbers"),
    (flat, "A [48] and B [16, 3]"),
    (wider_table, "model.embed_tokens.weight has shape [33, 17], in the base it is [30, 16]"),
    (another_layer, "holds 1 tensors that the base lacks"),
]


@pytest.mark.parametrize(("change", "said"), FILES, ids=[change.__name__ for change, _ in FILES])
def test_tensors_that_do_not_fit_are_refused(models: Path, change: Any, said: str) -> None:
    rewrite(models / "one", change)
    found = problems(models)
    assert said in found
    assert "two:" not in found


def test_all_problems_are_listed_at_once(models: Path) -> None:
    configure(models / "one", use_dora=True, init_lora_weights="pissa", lora_alpha="x")
    rewrite(models / "one", half_missing)
    rewrite(models / "two", another_width)
    assert len(problems(models).splitlines()) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(models: Path, value: float) -> None:
    rewrite(models / "one", lambda tensors: tensors[f"{Q}.lora_B.weight"][3, 1].fill_(value))
    with pytest.raises(NumericalError, match=r"q_proj\.lora_B\.weight' holds 1 values that are NaN or infinite"):
        merge(models / "base", [models / "one", models / "two"], models / "out", device="cpu")
    assert not (models / "out").exists()


def test_an_adapter_that_does_nothing_is_refused(models: Path) -> None:
    """PEFT starts with B at zero: such an adapter was never trained."""
    rewrite(models / "one", lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])
    with pytest.raises(InputError, match="one: every merged tensor equals the base's"):
        merge(models / "base", [models / "one", models / "two"], models / "out", device="cpu")


def test_an_adapter_cannot_be_the_base(models: Path) -> None:
    with pytest.raises(CheckpointError, match="is a LoRA adapter, which cannot be the base"):
        check(models / "one", [models / "two"])


def test_a_pickle_is_refused_with_how_to_convert_it(models: Path) -> None:
    (models / "one" / "adapter_model.safetensors").rename(models / "one" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"are a pickle.*run `sftm convert FOLDER`"):
        open_checkpoint(models / "one")
    (models / "one" / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: is missing"):
        open_checkpoint(models / "one")


def test_a_model_and_an_adapter_in_one_folder_are_refused(models: Path) -> None:
    shutil.copy(models / "base" / "model.safetensors", models / "one")
    with pytest.raises(CheckpointError, match="both a LoRA adapter and a full model"):
        open_checkpoint(models / "one")


def test_the_base_named_in_the_adapter_is_a_note_and_never_fetched(models: Path) -> None:
    configure(models / "one", base_model_name_or_path="someone/another-llama")
    configure(models / "two", base_model_name_or_path="someone/base")
    notes = [note for note in check(models / "base", [models / "one", models / "two"]).notes if "trained on" in note]
    assert notes == [
        "one: says that it was trained on 'someone/another-llama'. Make sure that this base is the same model."
    ]


def test_a_tied_output_layer_is_refused(tmp_path: Path) -> None:
    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "one", "llama", 1, {"tie_word_embeddings": True}, target_modules=["lm_head", "q_proj"])
    (said,) = check(tmp_path / "base", [tmp_path / "one"]).problems
    assert "changes lm_head, which the base ties to another parameter" in said


def test_patterns_are_read_as_peft_reads_them() -> None:
    from peft.utils.other import get_pattern_key

    patterns = {"q_proj": 1, r"layers\.1\..*": 2, "^model.layers.0.mlp": 3, "mlp.up|down": 4, "h.0": 5}
    config = AdapterConfig(8, 1.0, rank_pattern=patterns)
    for module in (
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up", "xq_proj",
        "model.layers.11.mlp", "model.layers.0.mlp", "a.mlp.up", "down", "model.h.0", "h.0", "q_proj.x", "h.01",
    ):  # fmt: skip
        assert config.rank_at(module) == patterns.get(get_pattern_key(patterns, module), 8), module


def test_names_are_sorted_by_what_they_are() -> None:
    prefix = "base_model.model."
    found = parse_names(
        prefix + name
        for name in (
            "a.lora_A.weight", "a.lora_B.default.weight", "t.lora_embedding_A", "t.lora_embedding_B.default",
            "n.modules_to_save.default.weight", "n.original_module.weight", "m.base_layer.bias",
            "c.bias", "c.modules_to_save.bias", "t.base_layer.weight",
        )
    )  # fmt: skip
    assert found.factors == {
        "a": {"A": prefix + "a.lora_A.weight", "B": prefix + "a.lora_B.default.weight"},
        "t": {"A": prefix + "t.lora_embedding_A", "B": prefix + "t.lora_embedding_B.default"},
    }
    assert found.tables == {"t"}
    assert sorted(found.whole) == ["c.bias", "m.bias", "n.weight", "t.weight"]
    assert (found.duplicates, found.unknown) == ([], [])
